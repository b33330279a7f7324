"""Training runs of any task: ``run(config, workdir)``. Needs the extra ``examples``."""

from gw_jax.train.config import (
    CheckpointConfig,
    LogConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from gw_jax.train.hooks import Hooks
from gw_jax.train.modes import RunResult
from gw_jax.train.runner import run
from gw_jax.train.task import Task

__all__ = [
    "CheckpointConfig",
    "Hooks",
    "LogConfig",
    "OptimizerConfig",
    "RunResult",
    "ScheduleConfig",
    "Task",
    "TrainConfig",
    "run",
]
