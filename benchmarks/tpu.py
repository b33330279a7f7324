"""Compiling for TPU slices on a machine without one, and reading what the compiler made: memory, traffic, collectives.

``libtpu`` holds the compiler (``pip install libtpu``). What it says about memory, bytes and collectives is what a slice
would run; its estimates of time are not used.
"""

import collections
import dataclasses
import os
import re
from typing import Any

# Before JAX starts: no TPU is looked for, neither here nor in a cloud's metadata.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # It cannot hold programs of devices that are not there.
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Two compilations at a time on one machine.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
os.environ.update(_ENVIRONMENT)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from gw_jax.data.specs import SPECS  # noqa: E402
from gw_jax.errors import ConfigError  # noqa: E402
from gw_jax.ops.target import compiling_for  # noqa: E402
from gw_jax.train.config import TrainConfig, validate  # noqa: E402
from gw_jax.train.schedule import make_optimizer, make_schedule  # noqa: E402
from gw_jax.train.setup import check_devices  # noqa: E402
from gw_jax.train.state import make_mesh, make_model, model_arguments, place_state, split_batch, state_maker  # noqa: E402
from gw_jax.train.step import make_eval_step, make_train_step  # noqa: E402

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_BYTES |= {"u64": 8, "f64": 8}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def devices(topology: str) -> list[Any]:
    """The devices of a TPU slice such as "v5e:16x16" or "v4:2x2x4".

    Raises:
        ConfigError: libtpu is not installed, or does not know the slice.
    """
    # Both cores of a v4 chip are one device, as the clouds set them up; later chips are so by themselves.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
    except Exception as error:  # The runtime's errors: no libtpu, or an unknown name.
        raise ConfigError(
            f"The TPU slice {topology!r} cannot be described ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Names are "
            "such as v5e:2x2, v5e:16x16, v4:2x2x1 or v4:4x4x4, and the compiler is a package: pip install libtpu."
        ) from error


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


def lower_steps(config: TrainConfig, slice_devices: list[Any]) -> dict[str, Any]:
    """The real training and evaluation steps of ``config``, lowered for ``slice_devices`` without any array.

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

    graphdef, _, shapes = state_maker(make, config.seed, optimizer, with_ema=config.ema_decay > 0)
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

    def lower_train() -> Any:
        with compiling_for(slice_devices[0]):
            return train_step.lower(state, batch(config.data.batch_size))

    def lower_eval() -> Any:
        with compiling_for(slice_devices[0]):
            return eval_step.lower(params, batch_stats, batch(config.data.eval_batch_size, mask=((), jnp.bool_)))

    return {"train": lower_train, "eval": lower_eval}
