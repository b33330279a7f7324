"""A window of training steps recorded by ``jax.profiler``, for TensorBoard, XProf or Perfetto."""

import pathlib
import sys
from typing import Any

import jax

from gw_jax.train.config import LogConfig
from gw_jax.train.distributed import is_main


class Profiler:
    """Records ``config.profile_steps`` steps from ``config.profile_step`` on into ``workdir/profile``, once per start.

    A window that ends early, that is never reached, or that cannot be written costs a warning, not the run.
    """

    def __init__(self, workdir: pathlib.Path, config: LogConfig):
        self._directory = workdir / "profile"
        self._first, self._count = config.profile_step, config.profile_steps
        self._end: int | None = None

    def before(self, step: int) -> None:
        """Starts to record if the window begins with the step after ``step`` steps."""
        if self._first is not None and step == self._first:
            self._first = None
            try:
                jax.profiler.start_trace(str(self._directory))
            except Exception as error:  # Another profiler that runs; a directory that cannot be made.
                _warn(f"no steps were profiled: {error}")
                return
            self._end = step + self._count

    def after(self, step: int, metrics: Any) -> None:
        """Stops if the window ends after ``step`` steps, as soon as these have returned their ``metrics``."""
        if self._end is not None and step >= self._end:
            jax.block_until_ready(metrics)
            self._stop()

    def close(self) -> None:
        """Stops if it records."""
        if self._first is not None:
            _warn(f"no steps were profiled: config.log.profile_step={self._first} is not among the steps of this start.")
            self._first = None
        if self._end is not None:
            self._stop()

    def _stop(self) -> None:
        self._end = None
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # Whatever writing the trace raises; the recording is lost, the run is not.
            _warn(f"the profile cannot be written to {self._directory}: {error}")


def _warn(message: str) -> None:
    if is_main():
        print(f"warning: {message}", file=sys.stderr)
