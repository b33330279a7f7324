"""Puts a run together: data, network, optimiser and compiled steps, with every check that needs more than the config."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from gw_jax.data.datasets import Dataset, open_dataset
from gw_jax.data.images import Transform
from gw_jax.data.specs import DatasetSpec
from gw_jax.errors import ConfigError
from gw_jax.nn import norm_options
from gw_jax.train.config import DataConfig, TrainConfig, validate
from gw_jax.train.schedule import make_optimizer, make_schedule
from gw_jax.train.state import TrainState, create_state, make_mesh, make_model, model_arguments, split_batch
from gw_jax.train.step import EvalStep, TrainStep, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run that is ready to start: what the loop needs, with an initial state."""

    config: TrainConfig
    mesh: Mesh
    dataset: Dataset
    model_arguments: dict[str, Any]
    graphdef: nnx.GraphDef
    state: TrainState
    train_step: TrainStep
    eval_step: EvalStep
    schedule: optax.Schedule
    steps_per_epoch: int

    @property
    def plain_model_arguments(self) -> dict[str, Any]:
        """The model's arguments with one running statistic a layer, whatever the groups of examples in training."""
        arguments = dict(self.model_arguments)
        for name in ("norm_options", "batch_norm_options"):
            if name in arguments:
                arguments[name] = {key: value for key, value in arguments[name].items() if key != "statistics_sets"}
        return arguments

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.config.num_epochs

    def eval_is_due(self, step: int) -> bool:
        """Whether ``step`` ends an epoch that is evaluated."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        if rest or step == 0:
            return False
        return epoch % self.config.eval_every_epochs == 0 or step == self.total_steps

    def put(self, batch: dict[str, np.ndarray]) -> Any:
        """Places this process's share of a batch on the devices."""
        sharding = split_batch(self.mesh)
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def set_up(config: TrainConfig, devices: list[jax.Device] | None = None) -> Experiment:
    """Opens the data and makes the network on all devices, or on ``devices``.

    Raises:
        ConfigError: a field that is not valid, or does not fit devices, data or network.
        DataError: the data set is missing or not prepared.
    """
    validate(config)
    mesh = make_mesh(devices)
    check_devices(config, mesh.size)
    dataset = open_dataset(
        config.data.name,
        config.data.data_dir,
        evaluation=config.data.eval_name,
        allow_partial=config.data.allow_partial,
    )
    check_images(config, dataset.spec)
    steps_per_epoch = dataset.spec.num_train // config.data.batch_size
    if steps_per_epoch == 0 and config.mode == "train":
        raise ConfigError(
            f"config.data.batch_size={config.data.batch_size} exceeds the {dataset.spec.num_train} training examples of "
            f"{config.data.name!r}; choose at most {dataset.spec.num_train}."
        )
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, max(steps_per_epoch, 1), config.num_epochs)
    optimizer = make_optimizer(config.optimizer, schedule)

    arguments = model_arguments(
        config.model,
        num_classes=dataset.spec.num_classes,
        in_channels=dataset.spec.image_shape[-1],
        image_size=config.data.image_size or dataset.spec.image_shape[0],
        batch_size=config.data.batch_size // config.accumulate_steps,
    )

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return make_model(arguments, dtype=config.dtype, rngs=rngs)

    try:
        graphdef, state = create_state(make, config.seed, optimizer, mesh, with_ema=config.ema_decay > 0)
    except ValueError as error:
        raise ConfigError(f"The network of config.model cannot be made: {error}") from error
    return Experiment(
        config=config,
        mesh=mesh,
        dataset=dataset,
        model_arguments=arguments,
        graphdef=graphdef,
        state=state,
        train_step=make_train_step(graphdef, optimizer, config, dataset.spec, mesh),
        eval_step=make_eval_step(graphdef, config, dataset.spec, mesh),
        schedule=schedule,
        steps_per_epoch=steps_per_epoch,
    )


def image_transform(config: DataConfig) -> Transform:
    """How the host brings images to their size."""
    scale, ratio = config.crop_scale, config.crop_ratio
    return Transform(
        size=config.image_size,
        crop=config.crop,
        eval_resize=config.eval_resize,
        scale=(scale[0], scale[1]),
        ratio=(ratio[0], ratio[1]),
    )


def check_devices(config: TrainConfig, num_devices: int) -> None:
    """Checks that batches can be split over the devices and into the groups of BatchNorm.

    Raises:
        ConfigError: a batch that does not divide, or a float64 run without 64-bit types.
    """
    parts = config.accumulate_steps
    for field, unit in (("batch_size", num_devices * parts), ("eval_batch_size", num_devices)):
        size = getattr(config.data, field)
        if size % unit:
            near = sorted({max(size // unit, 1) * unit, (size // unit + 1) * unit})
            times = f" in {parts} parts (config.accumulate_steps)" if unit > num_devices else ""
            raise ConfigError(
                f"config.data.{field}={size} cannot be split evenly over {num_devices} devices{times}; choose a multiple "
                "of "
                f"{unit}, such as {' or '.join(map(str, near))}."
            )
    at_a_time = config.data.batch_size // parts
    if (config.augment.mixup or config.augment.cutmix) and at_a_time // num_devices % 2:
        raise ConfigError(
            f"mixup and CutMix mix pairs of images on a device, and config.data.batch_size={config.data.batch_size} gives "
            f"each of {num_devices} devices {at_a_time // num_devices} at a time; choose a batch that gives an even number."
        )
    groups = {"model.batch_norm_group_size": config.model.batch_norm_group_size}
    if "group_size" in norm_options(config.model.norm):
        groups["model.norm_options.group_size"] = config.model.norm_options.group_size
    for name, group_size in groups.items():
        if group_size is not None and at_a_time % group_size:
            shown = f"config.data.batch_size={config.data.batch_size}" + (f" / {parts} parts" if parts > 1 else "")
            raise ConfigError(
                f"config.{name}={group_size} does not divide {shown}; choose a divisor of the batch, or leave it out for "
                "statistics of the whole batch."
            )
    if config.dtype == "float64" and jnp.zeros((), float).dtype != jnp.float64:
        raise ConfigError("config.dtype=float64 needs 64-bit types; set the environment variable JAX_ENABLE_X64=1.")


def check_images(config: TrainConfig, spec: DatasetSpec) -> None:
    """Checks that the images of ``spec`` can be stacked into batches.

    Raises:
        ConfigError: they differ in shape and ``config.data.image_size`` does not say what to resize them to.
    """
    if config.data.image_size is None and None in spec.image_shape:
        raise ConfigError(
            f"The images of {spec.name!r} differ in shape ({spec.image_shape}); set config.data.image_size to the edge in "
            "pixels to which they are resized."
        )
