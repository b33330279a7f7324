"""Image classification: its configuration and its task. Needs the extra ``examples``."""

from gw_jax.augment.config import AugmentConfig
from gw_jax.classification.config import ClassificationConfig
from gw_jax.classification.task import ClassificationTask
from gw_jax.data.config import DataConfig
from gw_jax.models.config import ModelConfig, NormConfig
from gw_jax.train.config import CheckpointConfig, LogConfig, OptimizerConfig, ScheduleConfig

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "ClassificationConfig",
    "ClassificationTask",
    "DataConfig",
    "LogConfig",
    "ModelConfig",
    "NormConfig",
    "OptimizerConfig",
    "ScheduleConfig",
]
