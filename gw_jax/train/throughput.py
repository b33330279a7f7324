"""Training throughput: examples and steps per second, without compilation, evaluation and saving."""

import time
from collections.abc import Callable

# These depend on the clock, as does "{unit}_per_sec"; all other metrics of a run are the same however often it was resumed.
TIMING_METRICS = ("step_ms", "data_wait", "mfu")


def is_timing(name: str) -> bool:
    """Whether the metric ``name``, such as "train/step_ms", depends on the clock."""
    last = name.rsplit("/", 1)[-1]
    return last in TIMING_METRICS or last.endswith("_per_sec")


class Throughput:
    """Counts examples, steps and seconds between :meth:`start` and :meth:`pause`.

    A step counts if it begins and ends between the two. So call both where no step is in flight::

        throughput.start()                              # does nothing if it runs already
        batch, waited = ...
        state, metrics = step(state, batch)             # dispatched, not finished
        throughput.count(batch_size, waited)
        ...
        jax.block_until_ready(metrics)
        values = throughput.read()                      # or pause(), before an evaluation, a save or a compilation

    Args:
        unit: what an example is called in the metric ``{unit}_per_sec``.
        clock: seconds, as ``time.perf_counter`` gives them.
    """

    def __init__(self, unit: str = "examples", clock: Callable[[], float] = time.perf_counter):
        self._unit, self._clock = unit, clock
        self._running_since: float | None = None
        self._seconds, self._waited = 0.0, 0.0
        self._examples, self._steps = 0, 0
        self._at_peak: float | None = 0.0

    def start(self) -> None:
        """Starts the clock, or continues after :meth:`pause`. No step may be in flight unless the clock runs already."""
        if self._running_since is None:
            self._running_since = self._clock()

    def pause(self) -> None:
        """Stops the clock until :meth:`start`. No step may be in flight."""
        if self._running_since is not None:
            self._seconds += self._clock() - self._running_since
            self._running_since = None

    def count(self, examples: int, waited: float, seconds_at_peak: float | None = None) -> None:
        """Counts a step.

        Args:
            examples: its examples.
            waited: seconds for which the loop waited for its batch.
            seconds_at_peak: how long it would take at the devices' peak, or None where that is not known.

        Raises:
            RuntimeError: the clock is stopped, so the step would count without its time.
        """
        if self._running_since is None:
            raise RuntimeError("Throughput.count() was called before start().")
        self._examples, self._steps, self._waited = self._examples + examples, self._steps + 1, self._waited + waited
        if self._at_peak is not None:
            self._at_peak = None if seconds_at_peak is None else self._at_peak + seconds_at_peak

    def read(self) -> dict[str, float]:
        """The throughput since the last call; empty if no step was counted. No step may be in flight.

        Returns:
            ``{unit}_per_sec``; ``step_ms``, milliseconds per step; ``data_wait``, share of the time spent waiting for
            batches; ``mfu``, model FLOPs utilisation, where the time at the devices' peak is known of all steps.
        """
        running = self._running_since is not None
        self.pause()
        values = {}
        if self._steps and self._seconds:
            values = {
                f"{self._unit}_per_sec": self._examples / self._seconds,
                "step_ms": 1e3 * self._seconds / self._steps,
                "data_wait": min(self._waited / self._seconds, 1.0),
            }
            if self._at_peak is not None:
                values["mfu"] = self._at_peak / self._seconds
        self._seconds, self._waited, self._examples, self._steps, self._at_peak = 0.0, 0.0, 0, 0, 0.0
        if running:
            self.start()
        return values
