"""The state of a run: parameters, batch statistics and optimiser as plain nested dicts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gw_jax.train.mesh import state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
        step: number of steps done, int32.
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
    def eval_weights(self) -> tuple[Any, Any]:
        """The parameters and batch statistics that are evaluated and exported: the averages, where there are any."""
        return (self.params, self.batch_stats) if self.ema is None else (self.ema["params"], self.ema["batch_stats"])


def update_ema(state: TrainState, params: Any, batch_stats: Any, decay: float) -> Any:
    """The averages after a step: ``ema <- d ema + (1 - d) new`` with ``d = min(decay, (1 + step) / (10 + step))``.

    Args:
        state: the state before the step, with its averages.
        params: the parameters after the step.
        batch_stats: the batch statistics after the step.
        decay: the final decay.
    """
    if state.ema is None:
        return None
    step = state.step.astype(jnp.float32)
    d = jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        keep = d.astype(new.dtype)
        return keep * old + (1 - keep) * new

    return jax.tree.map(average, state.ema, {"params": params, "batch_stats": batch_stats})


def activation_dtype(dtype: str, device: jax.Device | None = None) -> str:
    """``config.dtype`` with "auto" resolved for ``device``, by default the first one.

    bfloat16 on TPUs and on GPUs of compute capability 8.0 and above. Float32 on older GPUs, such as the T4, which emulate
    bfloat16 products, and on CPUs, which gain nothing.
    """
    if dtype != "auto":
        return dtype
    device = jax.devices()[0] if device is None else device
    if device.platform == "cpu":
        return "float32"
    if device.platform not in ("gpu", "cuda"):
        return "bfloat16"
    try:
        return "bfloat16" if float(device.compute_capability) >= 8.0 else "float32"
    except (AttributeError, ValueError):
        # AMD reports architectures, such as gfx942; all of them compute bfloat16 products.
        return "bfloat16"


def model_to_dicts(model: nnx.Module) -> tuple[nnx.GraphDef, Any, Any]:
    """The static part of ``model``, its parameters and its batch statistics, the latter two as plain nested dicts."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = states
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def create_state(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    seed: int,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    with_ema: bool = False,
) -> tuple[nnx.GraphDef, TrainState]:
    """Initialises the model that ``make_model(rngs)`` makes, directly on the devices of ``mesh``.

    Args:
        make_model: makes the network from its generators.
        seed: determines the initial parameters.
        optimizer: makes the optimiser's state.
        mesh: the devices.
        with_ema: whether the state has moving averages.

    Returns:
        The static part of the model, and the state.
    """
    graphdef, initialise, abstract = state_initializer(make_model, seed, optimizer, with_ema=with_ema)
    return graphdef, jax.jit(initialise, out_shardings=state_shardings(mesh, abstract))()


def state_initializer(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    seed: int,
    optimizer: optax.GradientTransformation,
    *,
    with_ema: bool = False,
) -> tuple[nnx.GraphDef, Callable[[], TrainState], TrainState]:
    """The static part of the model of ``make_model(rngs)``, a function that initialises its state, and its shapes.

    Arguments are those of :func:`create_state`.
    """
    graphdefs = []

    def initialise() -> TrainState:
        graphdef, params, batch_stats = model_to_dicts(make_model(nnx.Rngs(seed)))
        graphdefs.append(graphdef)
        # Copies: the training step donates every array of the state.
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), ema)

    # Traced, so that no array is made here: compiled with shardings, none ever sits on the wrong device.
    abstract = jax.eval_shape(initialise)
    return graphdefs[0], initialise, abstract
