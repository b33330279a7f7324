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
from gw_jax.nn.initializers import NoKeys
from gw_jax.train.config import ModelConfig, chosen_norm_options

DATA_AXIS = "data"
# Running statistics of BatchNorm and BatchWhitening, and the axes that they have without statistics_sets.
USUAL_AXES = {"mean": 1, "var": 1, "matrix": 3}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
        step: number of steps taken, int32.
        params: parameters by module path.
        batch_stats: running statistics by module path.
        opt_state: optimiser state.
        ema: exponential moving averages ``{"params": ..., "batch_stats": ...}``, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None

    @property
    def evaluated(self) -> tuple[Any, Any]:
        """The parameters and batch statistics that are evaluated and exported: the averages, where there are any."""
        return (self.params, self.batch_stats) if self.ema is None else (self.ema["params"], self.ema["batch_stats"])


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or those given) with the one axis "data", along which batches are split."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place_state(mesh: Mesh, tree: Any) -> Any:
    """The shardings of a :class:`TrainState`, or of a part of it: copies, except where groups of examples have rows.

    The running statistics of such groups lie where the groups' examples do, so that updating them needs no communication.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if has_rows(path, leaf) and leaf.shape[0] % mesh.size == 0:
            return split_batch(mesh)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def has_rows(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf of the state is a running statistic with a row for every group of examples (``statistics_sets``)."""
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    return "batch_stats" in names and leaf.ndim > USUAL_AXES.get(str(names[-1]), leaf.ndim)


def average_rows(batch_stats: Any) -> Any:
    """``batch_stats`` as layers without ``statistics_sets`` have them: the average over the rows."""

    def average(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.mean(0) if has_rows((jax.tree_util.DictKey("batch_stats"), *path), leaf) else leaf

    return jax.tree_util.tree_map_with_path(average, batch_stats)


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def model_arguments(
    config: ModelConfig, *, num_classes: int, in_channels: int, image_size: int | None, batch_size: int | None = None
) -> dict[str, Any]:
    """The arguments of :func:`gw_jax.create_model` for ``config``, without types and generators; JSON values.

    With ``batch_size``, the examples that layers see at a time, layers whose examples share statistics in groups keep the
    running statistics of every group; without it, their average.
    """

    def with_sets(options: dict[str, Any]) -> dict[str, Any]:
        group_size = options.get("group_size")
        if group_size is None or batch_size is None:
            return options
        return {**options, "statistics_sets": batch_size // group_size}

    common = {"name": config.name, "num_classes": num_classes, "in_channels": in_channels}
    norm = {"norm": config.norm, "norm_options": with_sets(chosen_norm_options(config))}
    if config.name == "lenet":
        return {**common, "image_size": image_size}
    if config.name in MNIST_NETWORKS:
        return {**common, **norm, "image_size": image_size, "depth": config.depth, "width": config.width}
    return {
        **common,
        **norm,
        "whiten": config.whiten,
        "batch_norm_options": with_sets({"group_size": config.batch_norm_group_size}),
        "stem": config.stem,
        "width": config.width,
        "replace_stride_with_dilation": list(config.replace_stride_with_dilation),
        "zero_init_residual": config.zero_init_residual,
        "last_norm": config.last_norm,
        "apply_last_norm": config.apply_last_norm,
        "dropout": config.dropout,
    }


def activation_dtype(dtype: str) -> str:
    """``config.dtype`` with "auto" resolved: bfloat16 on accelerators, float32 on CPUs."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def make_model(arguments: dict[str, Any], *, dtype: str, rngs: nnx.Rngs) -> nnx.Module:
    """The network of :func:`model_arguments` with activations of type ``dtype``.

    Raises:
        ValueError: options that do not fit each other, such as channels that the groups do not divide.
    """
    param_dtype = jnp.float64 if dtype == "float64" else jnp.float32
    return create_model(**arguments, dtype=jnp.dtype(activation_dtype(dtype)), param_dtype=param_dtype, rngs=rngs)


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Any, Any]:
    """The static part of ``model``, its parameters and its batch statistics, the latter two as plain nested dicts."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = states
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def create_state(
    make: Callable[[nnx.Rngs], nnx.Module],
    seed: int,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    with_ema: bool = False,
) -> tuple[nnx.GraphDef, TrainState]:
    """Initialises the model that ``make(rngs)`` builds, directly on the devices of ``mesh``."""
    graphdef, initialise, abstract = state_maker(make, seed, optimizer, with_ema=with_ema)
    return graphdef, jax.jit(initialise, out_shardings=place_state(mesh, abstract))()


def state_maker(
    make: Callable[[nnx.Rngs], nnx.Module], seed: int, optimizer: optax.GradientTransformation, *, with_ema: bool = False
) -> tuple[nnx.GraphDef, Callable[[], TrainState], TrainState]:
    """The static part of the model that ``make(rngs)`` builds, a function that makes its state, and the state's shapes."""
    # First without values, for the static part; then compiled, so that no array ever sits on another device.
    graphdef, _, _ = split_model(make(NoKeys()))

    def initialise() -> TrainState:
        _, params, batch_stats = split_model(make(nnx.Rngs(seed)))
        # Copies: the training step takes over the memory of every array of the state.
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), ema)

    return graphdef, initialise, jax.eval_shape(initialise)
