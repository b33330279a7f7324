"""The state of a run: parameters, batch statistics and optimiser as plain nested dicts on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gw_jax.models import create_model
from gw_jax.models.create_model import MNIST_NETWORKS
from gw_jax.nn.initial import NoKeys
from gw_jax.train.config import ModelConfig, chosen_norm_options

DATA_AXIS = "data"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
        step: number of steps taken, int32.
        params: parameters by module path.
        batch_stats: running statistics by module path.
        opt_state: optimiser state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or those given) with the one axis "data", along which batches are split."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def model_arguments(config: ModelConfig, *, num_classes: int, in_channels: int, image_size: int | None) -> dict[str, Any]:
    """The arguments of :func:`gw_jax.create_model` for ``config``, without types and generators; JSON values."""
    common = {"name": config.name, "num_classes": num_classes, "in_channels": in_channels}
    norm = {"norm": config.norm, "norm_options": chosen_norm_options(config)}
    if config.name == "lenet":
        return {**common, "image_size": image_size}
    if config.name in MNIST_NETWORKS:
        return {**common, **norm, "image_size": image_size, "depth": config.depth, "width": config.width}
    return {
        **common,
        **norm,
        "whiten": config.whiten,
        "batch_norm_options": {"group_size": config.batch_norm_group_size},
        "stem": config.stem,
        "width": config.width,
        "replace_stride_with_dilation": list(config.replace_stride_with_dilation),
        "zero_init_residual": config.zero_init_residual,
        "last_norm": config.last_norm,
        "apply_last_norm": config.apply_last_norm,
        "dropout": config.dropout,
    }


def make_model(arguments: dict[str, Any], *, dtype: str, rngs: nnx.Rngs) -> nnx.Module:
    """The network of :func:`model_arguments` with activations of type ``dtype``.

    Raises:
        ValueError: options that do not fit each other, such as channels that the groups do not divide.
    """
    param_dtype = jnp.float64 if dtype == "float64" else jnp.float32
    return create_model(**arguments, dtype=jnp.dtype(dtype), param_dtype=param_dtype, rngs=rngs)


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Any, Any]:
    """The static part of ``model``, its parameters and its batch statistics, the latter two as plain nested dicts."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = states
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def create_state(
    make: Callable[[nnx.Rngs], nnx.Module], seed: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """Initialises the model that ``make(rngs)`` builds, directly on the devices of ``mesh``."""
    # First without values, for the static part; then compiled, so that no array ever sits on another device.
    graphdef, _, _ = split_model(make(NoKeys()))

    def initialise() -> TrainState:
        _, params, batch_stats = split_model(make(nnx.Rngs(seed)))
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))

    return graphdef, jax.jit(initialise, out_shardings=replicated(mesh))()
