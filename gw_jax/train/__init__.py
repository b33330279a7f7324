"""The training run: ``run(config, workdir)``. Needs the extra ``examples``."""

from gw_jax.train.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    NormConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from gw_jax.train.loop import Outcome, run

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "LogConfig",
    "ModelConfig",
    "NormConfig",
    "OptimizerConfig",
    "Outcome",
    "ScheduleConfig",
    "TrainConfig",
    "run",
]
