"""The configuration of a classification run."""

import dataclasses
from typing import ClassVar

from gw_jax.augment.config import AugmentConfig
from gw_jax.classification.task import ClassificationTask
from gw_jax.config_checks import number
from gw_jax.data.config import DataConfig
from gw_jax.errors import ConfigError
from gw_jax.models.config import ModelConfig
from gw_jax.train.config import TrainConfig


@dataclasses.dataclass(slots=True, kw_only=True)
class ClassificationConfig(TrainConfig):
    """A run that trains, evaluates or exports an image classifier; see :class:`TrainConfig` for the fields of every run.

    Attributes:
        init_new_head: whether the last layer starts at random although ``init_from`` is set, for data with other classes.
        label_smoothing: fraction of a target that is spread over all classes.
        data: data sets, batch sizes, decoding and cropping.
        augment: augmentation on the devices.
        model: the network.

    Example:
        >>> from gw_jax.classification import ClassificationConfig, DataConfig, ModelConfig
        >>> model = ModelConfig(name="mlp", norm="bn")
        >>> config = ClassificationConfig(num_epochs=2, data=DataConfig(batch_size=400), model=model)
        >>> config.check()
        >>> config.optimizer.learning_rate = 0.05
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *TrainConfig.MAY_CHANGE,
        "data.data_dir",
        "data.num_threads",
        "data.num_workers",
        "data.max_broken",
    )
    MAY_DIFFER_IN_EVALUATION: ClassVar[tuple[str, ...]] = (
        *TrainConfig.MAY_DIFFER_IN_EVALUATION,
        "data.name",
        "data.allow_partial",
        "data.eval_name",
        "data.eval_batch_size",
        "data.eval_resize",
    )

    init_new_head: bool = False
    label_smoothing: float = number(0.0, 0, 0.999999)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)

    def make_task(self) -> ClassificationTask:
        """Opens the data sets.

        Raises:
            DataError: one is missing, not prepared, or no set of labelled images.
        """
        return ClassificationTask(self)

    def check(self) -> None:
        """Checks fields against each other.

        Raises:
            ConfigError: fields that exclude each other; the message says what to change.
        """
        TrainConfig.check(self)
        self.data.check()
        if self.init_new_head and self.init_from is None:
            raise ConfigError(
                "config.init_new_head=True keeps the last layer random when config.init_from is read, and config.init_from "
                "is not set. Set it, or leave init_new_head out."
            )
