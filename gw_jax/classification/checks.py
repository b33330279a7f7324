"""Checks of batches, devices, images and configuration against each other."""

from typing import TYPE_CHECKING

from gw_jax.config_checks import check_split
from gw_jax.data.specs import DatasetSpec
from gw_jax.errors import ConfigError
from gw_jax.nn import norm_options

if TYPE_CHECKING:
    from gw_jax.classification.config import ClassificationConfig


def check_devices(config: "ClassificationConfig", num_devices: int, *, training: bool = True) -> None:
    """Checks that batches can be sharded over the devices and cut into the groups of BatchNorm.

    Raises:
        ConfigError: a batch that does not divide.
    """
    parts = config.accumulate_steps
    if training:
        check_split("config.data.batch_size", config.data.batch_size, num_devices, parts)
    check_split("config.data.eval_batch_size", config.data.eval_batch_size, num_devices)
    if not training:
        return
    per_pass = config.data.batch_size // parts
    if (config.augment.mixup or config.augment.cutmix) and per_pass // num_devices % 2:
        raise ConfigError(
            f"mixup and CutMix mix pairs of images on a device, and config.data.batch_size={config.data.batch_size} gives "
            f"each of {num_devices} devices {per_pass // num_devices} per pass; choose a batch that gives an even number."
        )
    groups = {"model.batch_norm_group_size": config.model.batch_norm_group_size}
    if "group_size" in norm_options(config.model.norm):
        groups["model.norm_options.group_size"] = config.model.norm_options.group_size
    for name, group_size in groups.items():
        if group_size is not None and per_pass % group_size:
            shown = f"config.data.batch_size={config.data.batch_size}" + (f" / {parts} parts" if parts > 1 else "")
            raise ConfigError(
                f"config.{name}={group_size} does not divide {shown}; choose a divisor of the batch, or leave it out for "
                "statistics of the whole batch."
            )


def check_images(config: "ClassificationConfig", spec: DatasetSpec) -> None:
    """Checks that the images of ``spec`` can be stacked into batches.

    Raises:
        ConfigError: they differ in shape and ``config.data.image_size`` does not say what to resize them to.
    """
    if config.data.image_size is None and None in spec.image_shape:
        raise ConfigError(
            f"The images of {spec.name!r} differ in shape ({spec.image_shape}); set config.data.image_size to the edge in "
            "pixels to which they are resized."
        )


def check_batch_size(config: "ClassificationConfig", spec: DatasetSpec) -> None:
    """Checks that there is a whole training batch.

    Raises:
        ConfigError: the data set is smaller.
    """
    if config.data.batch_size > spec.num_train:
        raise ConfigError(
            f"config.data.batch_size={config.data.batch_size} exceeds the {spec.num_train} training examples of "
            f"{config.data.name!r}; choose at most {spec.num_train}."
        )
