"""Memory, traffic and collectives of a detector's training step on a TPU slice, compiled on a machine without a TPU.

    python -m benchmarks.detection_compile --configs=coco_faster_r50_gw,coco_faster_r50_bn [--topology=v5e:4x4]
                                           [--images=2,1] [--canvases=800x1344,1344x800] [--config.FIELD=VALUE ...]
                                           [--out=FILE]

The step is the trainer's own, in bfloat16, with ``--images`` per chip. Pooled proposals stay on a chip: where its images
are no multiple of ``config.sampling.pool_images``, each image keeps its own. A step of a ResNet-50 compiles in a quarter of
an hour on one idle core. ``--out`` appends every case as it ends, one JSON object per line; a case that is there is not
repeated.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import sys
import time
from typing import Any

from benchmarks import tpu  # Before JAX: it sets what JAX reads when it starts.

import jax  # isort: skip

from benchmarks.detection_steps import make_detection_steps
from gw_jax.detection.config import DetectionConfig
from gw_jax.errors import ConfigError, UserError
from gw_jax.train.chips import CHIPS
from gw_jax.train.command_line import parse

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SHARE = 0.95  # of a chip's memory that programs get; the runtime keeps the rest
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


def read_config(name: str, images: int, chips: int, overrides: list[str]) -> DetectionConfig:
    """The config ``configs/NAME.py`` with ``images`` per chip, in bfloat16.

    Raises:
        ConfigError: it is no detector's, or a field is not valid.
    """
    config = parse(["detection_compile", f"--config={CONFIGS}/{name}.py", *overrides], CONFIGS / f"{name}.py").config
    if not isinstance(config, DetectionConfig):
        raise ConfigError(f"{name} is a {type(config).__name__}; only detectors are compiled here, others by tpu_compile.")
    config.dtype, config.batch_size, config.eval_batch_size = "bfloat16", images * chips, chips
    if images % config.sampling.pool_images:
        config.sampling.pool_images = 1
    return config


def measure(config: DetectionConfig, canvas: str, devices: list[Any]) -> dict[str, Any]:
    """Compiles the training step: its figures per chip, as JSON values."""
    lowered = make_detection_steps(config, devices, canvas=canvas).lower["train"]()
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # The compiler refuses what cannot fit.
        if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error).lower():
            raise
        return {"fits": False, "error": str(error)[:4000], "seconds": time.perf_counter() - began}
    seconds = time.perf_counter() - began
    program = tpu.describe(compiled, seconds)
    return {**dataclasses.asdict(program), "fits": program.peak <= SHARE * CHIPS[devices[0].device_kind].memory}


def summary(case: dict[str, Any]) -> str:
    """One human-readable line."""
    what = f"{case['config']}, {case['images_per_chip']} x {case['canvas']} per chip"
    if "error" in case:
        return f"{what}: does not fit; the compiler said so after {case['seconds']:.0f} s"
    moved = ", ".join(f"{v['count']} {kind} of {v['bytes'] / 1e6:.1f} MB" for kind, v in case["collectives"].items())
    return (
        f"{what}: {case['peak'] / 1e9:.2f} GB{'' if case['fits'] else ', DOES NOT FIT'}, {case['bytes'] / 1e9:.1f} GB "
        f"moved, {case['flops'] / 1e12:.2f} TFLOP; {moved}; compiled in {case['seconds']:.0f} s"
    )


def main(arguments: list[str] | None = None) -> int:
    """Compiles and reports. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", required=True, help="names of files in configs/")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--images", default="2,1", help="per chip")
    parser.add_argument("--canvases", default="800x1344,1344x800")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines, appended")
    given, overrides = parser.parse_known_args(arguments)
    try:
        devices = tpu.devices(given.topology)
        done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out and given.out.exists() else []
        for name in given.configs.split(","):
            for images in map(int, given.images.split(",")):
                for canvas in given.canvases.split(","):
                    key = {"config": name, "topology": given.topology, "images_per_chip": images, "canvas": canvas}
                    key |= {"overrides": overrides}
                    if any(key.items() <= case.items() for case in done):
                        continue
                    case = key | measure(read_config(name, images, len(devices), overrides), canvas, devices)
                    case["versions"] = {package: importlib.metadata.version(package) for package in PACKAGES}
                    print(summary(case), flush=True)
                    if given.out:
                        with given.out.open("a") as file:
                            file.write(json.dumps(case) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
