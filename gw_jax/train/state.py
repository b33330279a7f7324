"""The state of a run: parameters, batch statistics and optimiser as plain nested dicts on a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gw_jax.models import create_model
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


def make_model(config: ModelConfig, *, num_classes: int, in_channels: int, dtype: str, seed: int) -> nnx.Module:
    """The network that ``config`` describes.

    Raises:
        ValueError: options that do not fit each other, such as channels that the groups do not divide.
    """
    param_dtype = jnp.float64 if dtype == "float64" else jnp.float32
    return create_model(
        config.name,
        num_classes=num_classes,
        norm=config.norm,
        norm_options=chosen_norm_options(config),
        whiten=config.whiten,
        batch_norm_options={"group_size": config.batch_norm_group_size},
        stem=config.stem,  # type: ignore[arg-type]
        width=config.width,
        in_channels=in_channels,
        dtype=jnp.dtype(dtype),
        param_dtype=param_dtype,
        rngs=nnx.Rngs(seed),
    )


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Any, Any]:
    """The static part of ``model``, its parameters and its batch statistics, the latter two as plain nested dicts."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = states
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def create_state(make: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState]:
    """Initialises the model that ``make()`` builds, directly on the devices of ``mesh``."""
    # First without memory, for the static part; then compiled, so that no array ever sits on another device.
    graphdef, _, _ = split_model(nnx.eval_shape(make))

    def initialise() -> TrainState:
        _, params, batch_stats = split_model(make())
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))

    return graphdef, jax.jit(initialise, out_shardings=replicated(mesh))()
