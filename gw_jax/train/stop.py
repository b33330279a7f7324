"""Graceful shutdown: a signal ends a run between two steps, with its state saved, on all hosts after the same step."""

import signal
import threading
import types
from typing import Any

import jax
import numpy as np

from gw_jax.errors import TrainingError

# Steps that may be in flight: enough to keep the devices busy, few enough to keep their batches in memory.
MAX_STEPS_AHEAD = 8
# Field of a batch, and of what a step returns, by which processes agree to stop.
STOP_FIELD = "stop"
_FAILURE = 2
# SIGHUP is what a closed terminal or a lost SSH connection sends.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP sets :attr:`signal`; a second SIGINT interrupts at once.

    SIGHUP stays ignored where it is ignored when the run starts: that is what ``nohup`` is for. In a thread other than the
    main one, where Python cannot handle signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                # Not SIGINT, which background jobs of shell scripts ignore by default.
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None is a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal = signal.Signals(number)


class StopConsensus:
    """The decision to stop, made alike in every process.

    In one process that is :class:`StopRequest` itself. Several processes must all stop before the same step, or they would
    wait for each other forever. So a stop request travels in the batch, the compiled step returns the maximum over the
    batch, and every process reads the answer of the same earlier step::

        consensus = StopConsensus(stop)
        metrics = step(state, consensus.attach(batch))     # metrics["stop"] = batch["stop"].max()
        consensus.observe(metrics_of_an_earlier_step)
        if consensus.should_stop: ...

    A decision is final, so one object must serve training and evaluation.
    A failure that one process alone has seen, such as data that it cannot read, travels the same way and ends all of them.
    """

    def __init__(self, stop: StopRequest | None):
        self._stop = stop
        self._several = jax.process_count() > 1
        self._decided = self._failed = False

    @property
    def should_stop(self) -> bool:
        """Whether all processes stop now."""
        return self._decided if self._several else bool(self._stop)

    def attach(self, batch: dict[str, Any], *, failed: bool = False) -> dict[str, Any]:
        """``batch`` with this process's stop request or failure, one value per example, where there are several."""
        if not self._several:
            return batch
        size = len(jax.tree.leaves(batch)[0])
        return {**batch, STOP_FIELD: np.full(size, _FAILURE if failed else bool(self._stop), np.uint8)}

    def observe(self, metrics: dict[str, Any]) -> None:
        """Reads the answer from the outputs of a step. Every process must observe the same steps."""
        if metrics.get(STOP_FIELD) is not None:
            answer = int(jax.device_get(metrics[STOP_FIELD]))
            self._decided = self._decided or answer > 0
            self._failed = self._failed or answer == _FAILURE

    def raise_failure(self, own: Exception | None) -> None:
        """Raises the failure that a process attached, in all of them at the same step.

        Args:
            own: that of this process, if it has one.
        """
        if own is not None and (self._failed or not self._several):
            raise own
        if self._failed:
            raise TrainingError("Another host of this run failed, and all end with it; the message of that host says why.")
