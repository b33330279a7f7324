"""The real training and evaluation steps of a config, lowered without data, and the compiler's figures of a program."""

import collections
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax.classification import ClassificationConfig, ClassificationTask
from gw_jax.data.datasets import Dataset
from gw_jax.data.specs import SPECS
from gw_jax.errors import ConfigError
from gw_jax.nn import make_norm
from gw_jax.ops import check_kernels
from gw_jax.ops.kernels.placement import compiling_for
from gw_jax.train.config import TrainConfig, validate
from gw_jax.train.mesh import batch_sharding, make_mesh, state_shardings
from gw_jax.train.optimizer import make_optimizer
from gw_jax.train.schedule import Length, make_schedule
from gw_jax.train.state import state_initializer
from gw_jax.train.step import make_eval_step, make_train_step
from gw_jax.train.task import Task

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_BYTES |= {"u64": 8, "f64": 8}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiler's figures of one compiled step, on one chip.

    Attributes:
        flops: operations.
        bytes: bytes read and written in the chip's memory.
        arguments: bytes of the arguments.
        temporaries: bytes of everything in between.
        peak: bytes at the most: arguments, results that do not take an argument's place, and temporaries.
        donated: bytes of arguments whose memory results reuse.
        collectives: number and bytes of results by kind.
        copies: ``copy`` operations.
        seconds: time to compile, on this machine.
    """

    flops: float
    bytes: float
    arguments: int
    temporaries: int
    peak: int
    donated: int
    collectives: dict[str, dict[str, int]]
    copies: int
    seconds: float


def describe(compiled: Any, seconds: float) -> Program:
    """Reads a compiled program."""
    cost, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    cost = cost[0] if isinstance(cost, list) else cost
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        flops=float(cost.get("flops", 0)),
        bytes=float(cost.get("bytes accessed", 0)),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes + memory.temp_size_in_bytes + new,
        donated=memory.alias_size_in_bytes,
        collectives=collectives(text),
        copies=len(re.findall(r"= \S+ copy\(", text)),
        seconds=seconds,
    )


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Number and bytes (of the results) of the collective operations in a compiled program's text, by kind."""
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    for line in text.splitlines():
        match = re.search(r"= (.+?) (" + "|".join(COLLECTIVES) + r")(-start)?\(", line)
        if match is None:
            continue
        shapes = _SHAPE.findall(match.group(1))
        # A started all-gather or permute returns its operand beside its result.
        if match.group(3) and match.group(2) != "all-reduce":
            shapes = shapes[len(shapes) // 2 :]
        sizes = [_BYTES.get(kind, 4) * int(np.prod([int(n) for n in dims.split(",") if n])) for kind, dims in shapes]
        found[match.group(2)]["count"] += 1
        found[match.group(2)]["bytes"] += sum(sizes)
    return dict(found)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a config on some devices.

    Attributes:
        lower: gives the lowered step, by "train" and "eval".
        arguments: the shapes, types and shardings of a step's arguments, likewise.
        initialise: gives the initial state, on the first device.
    """

    lower: dict[str, Callable[[], Any]]
    arguments: dict[str, Any]
    initialise: Callable[[], Any]


def lower_steps(config: ClassificationConfig, slice_devices: list[Any]) -> dict[str, Any]:
    """Lowers the steps of :func:`make_steps`, by "train" and "eval"."""
    return make_steps(config, slice_devices).lower


def make_steps(config: ClassificationConfig, slice_devices: list[Any]) -> Steps:
    """The real training and evaluation steps of ``config`` for ``slice_devices``; no array is made.

    Raises:
        ConfigError: the config is not valid, names a set whose sizes are not known, or does not fit the devices.
    """
    validate(config)
    if config.data.name not in SPECS or (config.data.image_size is None and None in SPECS[config.data.name].image_shape):
        raise ConfigError(
            f"config.data.name={config.data.name!r} with image_size={config.data.image_size} does not determine the shape "
            f"of a batch; choose one of {', '.join(SPECS)}, with an image_size for ImageNet."
        )
    spec = SPECS[config.data.name]
    task = ClassificationTask(config, Dataset(spec, (), ()))
    size = config.data.image_size or spec.image_shape[0]

    def batch(number: int, **more: Any) -> dict[str, Any]:
        fields = {"image": ((size, size, spec.image_shape[-1]), jnp.uint8), "label": ((), jnp.int32), **more}
        return {name: jax.ShapeDtypeStruct((number, *shape), dtype) for name, (shape, dtype) in fields.items()}

    batches = {
        "train": batch(config.data.batch_size),
        "eval": batch(config.data.eval_batch_size, mask=((), jnp.bool_)),
    }
    return task_steps(task, config, slice_devices, batches)


def task_steps(task: Task, config: TrainConfig, slice_devices: list[Any], batches: dict[str, Any]) -> Steps:
    """The steps of a task for ``slice_devices``; no array is made.

    Args:
        task: gives network and loss.
        config: its configuration.
        slice_devices: over which batches are sharded.
        batches: shapes and types of the whole batches of "train" and "eval".

    Raises:
        ConfigError: the batch does not fit the devices.
    """
    mesh = make_mesh(slice_devices)
    task.check(mesh.size, training=True)
    length = Length.of(config, max(task.steps_per_epoch, 1))
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, length.steps_per_epoch, length.total_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    graphdef, initialise, shapes = state_initializer(task.make_model, config.seed, optimizer, with_ema=config.ema_decay > 0)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )

    def sharded(name: str) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)), batches[name]
        )

    steps = {
        "train": make_train_step(task, graphdef, optimizer, config, mesh),
        "eval": make_eval_step(task, graphdef, mesh),
    }
    arguments = {"train": (state, sharded("train")), "eval": (*state.eval_weights, sharded("eval"))}

    def lower(name: str) -> Callable[[], Any]:
        def lowered() -> Any:
            if slice_devices[0] in jax.devices():
                # As the trainer does before its first step.
                check_kernels(steps[name], *arguments[name])
            with compiling_for(slice_devices[0]):
                return steps[name].lower(*arguments[name])

        return lowered

    return Steps({name: lower(name) for name in steps}, arguments, initialise)


def lower_layer(
    norm: str,
    shape: tuple[int, ...],
    dtype: str,
    sharding: jax.sharding.Sharding,
    *,
    masked: bool = False,
    **options: Any,
) -> Any:
    """Lowers a norm's output, its gradients and its new statistics.

    Args:
        norm: a name of :func:`gw_jax.make_norm`.
        shape: of the input, ``[n, h, w, c]``.
        dtype: of the input.
        sharding: of all arguments.
        masked: whether a mask is another argument.
        options: of the norm.
    """
    layer = make_norm(norm, shape[-1], rngs=nnx.Rngs(0), **options)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def step(params: Any, x: jax.Array, rest: Any, cotangent: jax.Array, mask: jax.Array | None) -> Any:
        def forward(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            model = nnx.merge(graphdef, params, rest, copy=True)
            y = model(x) if mask is None else model(x, mask=mask)
            return y, nnx.split(model, nnx.Param, ...)[2]

        y, pullback, updated = jax.vjp(forward, params, x, has_aux=True)
        return y, pullback(cotangent), updated

    def described(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
    mask = jax.ShapeDtypeStruct(shape[:-1], jnp.bool_, sharding=sharding) if masked else None
    return jax.jit(step).lower(jax.tree.map(described, params), x, jax.tree.map(described, rest), x, mask)
