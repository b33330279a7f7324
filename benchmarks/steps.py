"""The real training and evaluation steps of a config, lowered without data, and what the compiler says of a program."""

import collections
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gw_jax.train.setup import check_devices

from gw_jax.data.specs import SPECS
from gw_jax.errors import ConfigError
from gw_jax.ops.kernels.placement import compiling_for
from gw_jax.train.config import TrainConfig, validate
from gw_jax.train.schedule import make_optimizer, make_schedule
from gw_jax.train.state import make_mesh, make_model, model_arguments, place_state, split_batch, state_maker
from gw_jax.train.step import make_eval_step, make_train_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_BYTES |= {"u64": 8, "f64": 8}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of one compiled step, on one chip.

    Attributes:
        flops: operations.
        bytes: bytes read and written in the chip's memory.
        arguments: bytes of the arguments.
        temporaries: bytes of everything in between.
        peak: bytes at the most: arguments, results that do not take an argument's place, and temporaries.
        donated: bytes of arguments whose place results take.
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
        arguments: the shapes, types and places of a step's arguments, likewise.
        initialise: gives the state at the start, on the first device.
    """

    lower: dict[str, Callable[[], Any]]
    arguments: dict[str, Any]
    initialise: Callable[[], Any]


def lower_steps(config: TrainConfig, slice_devices: list[Any]) -> dict[str, Any]:
    """Lowers the steps of :func:`make_steps`, by "train" and "eval"."""
    return make_steps(config, slice_devices).lower


def make_steps(config: TrainConfig, slice_devices: list[Any]) -> Steps:
    """The real training and evaluation steps of ``config`` for ``slice_devices``; no array is made.

    Raises:
        ConfigError: the config is not valid, names a set whose sizes are not known, or does not fit the devices.
    """
    validate(config)
    if config.data.name not in SPECS or (config.data.image_size is None and None in SPECS[config.data.name].image_shape):
        raise ConfigError(
            f"config.data.name={config.data.name!r} with image_size={config.data.image_size} does not tell the shape of a "
            f"batch; choose one of {', '.join(SPECS)}, with an image_size for ImageNet."
        )
    spec, mesh = SPECS[config.data.name], make_mesh(slice_devices)
    check_devices(config, mesh.size)
    steps_per_epoch = max(spec.num_train // config.data.batch_size, 1)
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps_per_epoch, config.num_epochs)
    optimizer = make_optimizer(config.optimizer, schedule)
    size = config.data.image_size or spec.image_shape[0]
    arguments = model_arguments(
        config.model,
        num_classes=spec.num_classes,
        in_channels=spec.image_shape[-1],
        image_size=size,
        batch_size=config.data.batch_size // config.accumulate_steps,
    )

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return make_model(arguments, dtype=config.dtype, rngs=rngs)

    graphdef, initialise, shapes = state_maker(make, config.seed, optimizer, with_ema=config.ema_decay > 0)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        place_state(mesh, shapes),
    )

    def batch(number: int, **more: Any) -> dict[str, Any]:
        fields = {"image": ((size, size, spec.image_shape[-1]), jnp.uint8), "label": ((), jnp.int32), **more}
        return {
            name: jax.ShapeDtypeStruct((number, *shape), dtype, sharding=split_batch(mesh))
            for name, (shape, dtype) in fields.items()
        }

    train_step = make_train_step(graphdef, optimizer, config, spec, mesh)
    eval_step = make_eval_step(graphdef, config, spec, mesh)
    params, batch_stats = state.evaluated

    arguments_of = {
        "train": (state, batch(config.data.batch_size)),
        "eval": (params, batch_stats, batch(config.data.eval_batch_size, mask=((), jnp.bool_))),
    }

    def lower(name: str, step: Any) -> Callable[[], Any]:
        def lowered() -> Any:
            with compiling_for(slice_devices[0]):
                return step.lower(*arguments_of[name])

        return lowered

    return Steps({"train": lower("train", train_step), "eval": lower("eval", eval_step)}, arguments_of, initialise)
