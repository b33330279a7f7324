"""A window of training steps recorded by ``jax.profiler``, for TensorBoard, XProf or Perfetto."""

import pathlib
from typing import Any

import jax

from gw_jax.train.config import LogConfig


class Profiler:
    """Records ``config.profile_steps`` steps from ``config.profile_step`` on into ``workdir/profile``, once a start."""

    def __init__(self, workdir: pathlib.Path, config: LogConfig):
        self._directory = workdir / "profile"
        self._first, self._count = config.profile_step, config.profile_steps
        self._end: int | None = None

    def before(self, step: int) -> None:
        """Starts to record if the window begins with the step after ``step`` steps."""
        if self._first is not None and step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._end = step + self._count

    def after(self, step: int, metrics: Any) -> None:
        """Stops if the window ends after ``step`` steps, as soon as these have given their ``metrics``."""
        if self._end is not None and step >= self._end:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Stops, if it records."""
        if self._end is not None:
            self._end = None
            jax.profiler.stop_trace()
