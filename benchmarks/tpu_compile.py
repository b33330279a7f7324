"""Memory and traffic of a run on a TPU slice, from compiling its real steps on a machine without a TPU.

    python -m benchmarks.tpu_compile --topology=v5e:16x16 --config=configs/imagenet_resnet50_gw.py [--batch=4096,8192]
                                     [--largest_batch] [--implementation=prefer_kernel] [--config.FIELD=VALUE ...]
                                     [--json]

For the training and the evaluation step it reports, per chip: memory, bytes moved, operations, collectives by kind with
their bytes, and the bound on images per second that the chip's published peak sets (whatever is slower, arithmetic or
memory; no run reaches it). ``--largest_batch`` finds the largest batch that fits: it compiles two batches, extends the line
through their memory, and compiles the batch where it meets the chip's. Compiling a ResNet-50 step takes two minutes.
``--implementation=prefer_kernel`` counts with the kernels of Group Whitening, which "auto" does not choose since no TPU has
run them.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import sys
import time
from typing import Any

from benchmarks import tpu  # Before JAX: it sets what JAX reads when it starts.
from gw_jax.classification import ClassificationConfig
from gw_jax.errors import ConfigError, UserError
from gw_jax.train.chips import CHIPS, Chip
from gw_jax.train.command_line import parse
from train import DEFAULT_CONFIG

STATE_OVERHEAD = 0.95  # The share of a chip's memory that programs get; the runtime keeps the rest.


def measure(config: ClassificationConfig, devices: list[Any], steps: tuple[str, ...]) -> dict[str, tpu.Program]:
    """Compiles ``steps`` of ``config``."""
    lowered = tpu.lower_steps(config, devices)
    programs = {}
    for step in steps:
        began = time.perf_counter()
        compiled = lowered[step]().compile()
        programs[step] = tpu.describe(compiled, time.perf_counter() - began)
    return programs


def bound(program: tpu.Program, images: float, chip: Chip) -> float:
    """Most images per second and chip that arithmetic and memory allow."""
    return images / max(program.flops / chip.flops, program.bytes / chip.bandwidth)


def largest_batch(config: ClassificationConfig, devices: list[Any], chip: Chip) -> tuple[int, tpu.Program]:
    """The largest batch (a multiple of 8 per chip) whose training step fits into ``chip.memory``, and its program.

    Raises:
        ConfigError: not even the smallest batch fits.
    """
    unit = 8 * len(devices) * config.accumulate_steps
    for group_size in (config.model.batch_norm_group_size, config.model.norm_options.group_size):
        if group_size is not None and unit % group_size:
            unit *= group_size // _gcd(unit, group_size)

    def program(units: int) -> tpu.Program | None:
        config.data.batch_size = units * unit
        try:
            return measure(config, devices, ("train",))["train"]
        except Exception as error:  # The compiler refuses what cannot fit.
            if "RESOURCE_EXHAUSTED" in str(error) or "memory" in str(error).lower():
                return None
            raise

    limit = STATE_OVERHEAD * chip.memory
    small, large = program(1), program(4)
    if small is None or small.peak > limit:
        raise ConfigError(
            f"A batch of {unit} does not fit into {chip.memory / 1e9:.0f} GB per chip. Raise config.accumulate_steps."
        )
    if large is None or large.peak > limit:
        return unit, small
    slope = (large.peak - small.peak) / 3
    units = int(1 + (limit - small.peak) // slope)
    while units > 4:
        found = program(units)
        if found is not None and found.peak <= limit:
            return units * unit, found
        units = min(units - 1, int(units * 0.95))
    return 4 * unit, large


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


def report(
    topology: str, config: ClassificationConfig, batch: int, programs: dict[str, tpu.Program], devices: list[Any]
) -> dict[str, Any]:
    """The report on one batch, as JSON values."""
    chip = CHIPS[devices[0].device_kind]
    result: dict[str, Any] = {
        "topology": topology,
        "device": devices[0].device_kind,
        "chips": len(devices),
        "batch_size": batch,
        "eval_batch_size": config.data.eval_batch_size,
    }
    for step, program in programs.items():
        images = (batch if step == "train" else config.data.eval_batch_size) / len(devices)
        result[step] = {
            **dataclasses.asdict(program),
            "images_per_sec_bound_per_chip": bound(program, images, chip),
            "fits": program.peak <= STATE_OVERHEAD * chip.memory,
        }
    return result


def print_report(result: dict[str, Any]) -> None:
    """Prints a few human-readable lines."""
    print(f"{result['topology']}: {result['chips']} chips ({result['device']}), batch {result['batch_size']:,}")
    for step in ("train", "eval"):
        if step not in result:
            continue
        p = result[step]
        moved = (
            ", ".join(f"{v['count']} {kind} of {v['bytes'] / 1e6:.1f} MB" for kind, v in p["collectives"].items()) or "none"
        )
        print(
            f"  {step}: {p['peak'] / 1e9:.2f} GB per chip ({p['temporaries'] / 1e9:.2f} GB of it temporary, "
            f"{p['donated'] / 1e9:.2f} GB donated){'' if p['fits'] else ', DOES NOT FIT'}; "
            f"{p['bytes'] / 1e9:.1f} GB moved, {p['flops'] / 1e12:.2f} TFLOP; "
            f"at most {p['images_per_sec_bound_per_chip']:,.0f} images/s and chip; "
            f"collectives: {moved}; compiled in {p['seconds']:.0f} s"
        )


def read_config(arguments: list[str]) -> ClassificationConfig:
    """The configuration of the command line of ``train.py``."""
    config = parse(["tpu_compile", *arguments], DEFAULT_CONFIG).config
    if not isinstance(config, ClassificationConfig):
        raise ConfigError(f"Only image classification can be compiled here, and the config is a {type(config).__name__}.")
    return config


def main(arguments: list[str] | None = None) -> int:
    """Compiles and reports. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, help="a TPU slice: v5e:16x16, v4:4x4x4")
    parser.add_argument("--batch", help="global batch sizes, such as 4096,8192; default: the config's")
    parser.add_argument("--largest_batch", action="store_true", help="find the largest batch that fits")
    parser.add_argument("--implementation", help="of Group Whitening, in place of the config's")
    parser.add_argument("--steps", default="train,eval", help="train, eval or both (default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given, rest = parser.parse_known_args(arguments)
    try:
        config = read_config(rest)
        if config.dtype == "auto":
            config.dtype = "bfloat16"
        if given.implementation:
            config.model.norm_options.implementation = given.implementation
        devices = tpu.devices(given.topology)
        if devices[0].device_kind not in CHIPS:
            raise ConfigError(f"The figures of {devices[0].device_kind!r} are not in gw_jax/train/chips.py; add them.")
        steps = tuple(given.steps.split(","))
        cases = []
        for batch in [int(text) for text in given.batch.split(",")] if given.batch else [config.data.batch_size]:
            config.data.batch_size = batch
            # An evaluation batch that the slice can share.
            if config.data.eval_batch_size % len(devices):
                config.data.eval_batch_size = batch
            cases.append(report(given.topology, config, batch, measure(config, devices, steps), devices))
            print_report(cases[-1])
        if given.largest_batch:
            batch, program = largest_batch(config, devices, CHIPS[devices[0].device_kind])
            cases.append(report(given.topology, config, batch, {"train": program}, devices) | {"largest": True})
            print("The largest batch that fits:")
            print_report(cases[-1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if given.json:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax", "optax")}
        print(json.dumps({"versions": versions, "cases": cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
