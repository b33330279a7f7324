"""Turns Ctrl-C and SIGTERM into a wish to stop, so that a run ends between two steps and loses nothing."""

import signal
import types
from typing import Any

import jax
import numpy as np

# Steps that may be under way at a time: enough to keep devices busy, few enough to keep their batches in memory.
MAX_STEPS_AHEAD = 8


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets :attr:`signal`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


class StopAgreement:
    """Whether to stop, decided alike in every process.

    In one process that is :class:`StopRequest` itself. Several must all stop before the same step, or they would wait for
    each other for ever. So a wish travels in the batch, a step returns the largest, and all processes look at the answer of
    the same earlier step.
    """

    def __init__(self, stop: StopRequest | None):
        self._stop = stop
        self._several = jax.process_count() > 1
        self._heard = False

    @property
    def reached(self) -> bool:
        """Whether all processes stop now."""
        return self._heard if self._several else bool(self._stop)

    def ask(self, batch: dict[str, Any]) -> dict[str, Any]:
        """``batch`` with this process's wish, where there are several."""
        if not self._several:
            return batch
        return {**batch, "stop": np.full(len(batch["label"]), bool(self._stop), np.uint8)}

    def hear(self, metrics: dict[str, Any]) -> None:
        """Takes the answer from what a step returned."""
        if "stop" in metrics:
            self._heard = self._heard or bool(jax.device_get(metrics["stop"]))
