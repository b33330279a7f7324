"""Memory traffic of Group Whitening on a TPU, beside BatchNorm and GroupNorm; compiled without a TPU.

    python -m benchmarks.tpu_cost [--json] [--topology=v5e:2x2] [--batch=128] [--layers_only] [--models=resnet50,resnext50]
                                  [--norms=gw,bn,gn] [--implementation=prefer_kernel] [--shapes=200x336x64,...] [--mask]

One chip of the slice, bfloat16 activations. For a layer: bytes accessed, forward and backward, over the bytes of its input
("passes"); ``--mask`` gives layers a mask, as detectors do. For a network: the whole training step on images of 224 pixels,
with the norm at the paper's place (S1-B2, 64 groups) and BatchNorm elsewhere. The compiler (libtpu, extra ``plan``) says
what it would move; no time is measured. Kernels count with the arrays that they read and write. "auto" chooses no kernel on
a TPU, since none has run on one; the default here, ``--implementation=prefer_kernel``, does. Compiling a ResNet-50 step
takes two minutes.
"""

import argparse
import importlib.metadata
import json
import math
import re
import sys
import time
from typing import Any

from benchmarks import tpu  # Before JAX: it sets what JAX reads when it starts.

from jax.sharding import NamedSharding, PartitionSpec  # isort: skip

from benchmarks.steps import lower_layer
from gw_jax.classification import ClassificationConfig, DataConfig, ModelConfig, NormConfig
from gw_jax.errors import ConfigError
from gw_jax.models.resnet import ARCHITECTURES
from gw_jax.ops.kernels.placement import compiling_for
from gw_jax.train.mesh import make_mesh

SHAPES = [(112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]
NAMES = {"resnext50": "resnext50_32x4d"}  # Short ones; others are those of create_model.
OPTIONS: dict[str, dict[str, Any]] = {"gw": {"num_groups": 64}, "gn": {"num_groups": 32}, "bn": {}}


def compile_layer(norm: str, shape: tuple[int, ...], device: Any, masked: bool, options: dict[str, Any]) -> tpu.Program:
    """A layer's output, its gradients and its new statistics, for an input ``[n, h, w, c]`` in bfloat16."""
    sharding = NamedSharding(make_mesh([device]), PartitionSpec())
    began = time.perf_counter()
    with compiling_for(device):
        lowered = lower_layer(norm, shape, "bfloat16", sharding, masked=masked, **options)
    compiled = lowered.compile()
    return tpu.describe(compiled, time.perf_counter() - began)


def compile_network(name: str, norm: str, batch: int, device: Any, options: dict[str, Any]) -> tpu.Program:
    """The training step of a network with ``norm``."""
    config = ClassificationConfig(
        dtype="bfloat16",
        data=DataConfig(name="imagenet2012", image_size=224, batch_size=batch, eval_batch_size=batch),
        model=ModelConfig(name=NAMES.get(name, name), norm=norm, norm_options=NormConfig(**options)),
    )
    lowered = tpu.lower_steps(config, [device])["train"]()
    began = time.perf_counter()
    compiled = lowered.compile()
    return tpu.describe(compiled, time.perf_counter() - began)


def with_ratios(programs: dict[str, tpu.Program]) -> dict[str, Any]:
    """The report on a network, and its figures over BatchNorm's."""
    result: dict[str, Any] = {
        norm: {
            "bytes": program.bytes,
            "flops": program.flops,
            "temp_bytes": program.temporaries,
            "peak_bytes": program.peak,
            "copies": program.copies,
            "compile_seconds": program.seconds,
        }
        for norm, program in programs.items()
    }
    if "gw" in programs and "bn" in programs:
        gw, bn = programs["gw"], programs["bn"]
        result["bytes_ratio"] = gw.bytes / bn.bytes
        result["temp_ratio"] = gw.temporaries / bn.temporaries
        result["peak_ratio"] = gw.peak / bn.peak
        result["compile_ratio"] = gw.seconds / bn.seconds
    return result


def main(arguments: list[str] | None = None) -> int:
    """Compiles and reports. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--topology", default="v5e:2x2", help="a TPU slice, of which one chip is used")
    parser.add_argument("--batch", type=int, default=128, help="samples on the chip")
    parser.add_argument("--norms", default="gw,bn,gn", help=f"of {', '.join(OPTIONS)}")
    parser.add_argument("--models", default="resnet50,resnext50", help="networks; empty for none")
    parser.add_argument("--layers_only", action="store_true", help="no networks")
    parser.add_argument(
        "--shapes", default=",".join("x".join(map(str, shape)) for shape in SHAPES), help="of layers, HxWxC"
    )
    parser.add_argument("--mask", action="store_true", help="layers with a mask")
    parser.add_argument("--implementation", default="prefer_kernel", help="of Group Whitening")
    args = parser.parse_args(arguments)
    norms = args.norms.split(",")
    if unknown := set(norms) - set(OPTIONS):
        parser.error(f"--norms={args.norms}: {', '.join(sorted(unknown))} is not known; choose of {', '.join(OPTIONS)}")
    models_wanted = [] if args.layers_only or not args.models else args.models.split(",")
    if unknown := {NAMES.get(name, name) for name in models_wanted} - set(ARCHITECTURES):
        parser.error(
            f"--models={args.models}: {', '.join(sorted(unknown))} is not known; choose of {', '.join(ARCHITECTURES)}"
        )
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes.split(",") if re.fullmatch(r"\d+x\d+x\d+", shape)]
    if len(shapes) != len(args.shapes.split(",")):
        parser.error(f"--shapes={args.shapes}: give HxWxC, such as 56x56x64, with commas between them")
    options = {name: dict(values) for name, values in OPTIONS.items()}
    options["gw"]["implementation"] = args.implementation
    try:
        device = tpu.devices(args.topology)[0]
        layers = []
        for shape in ((args.batch, *shape) for shape in shapes):
            size = 2 * math.prod(shape)
            layer: dict[str, Any] = {"shape": list(shape)}
            for norm in norms:
                program = compile_layer(norm, shape, device, args.mask, options[norm])
                layer |= {f"{norm}_passes": program.bytes / size, f"{norm}_copies": program.copies}
                layer[f"{norm}_temporary_passes"] = program.temporaries / size
                layer[f"{norm}_compile_seconds"] = program.seconds
            layers.append(layer)
            figures = "  ".join(f"{norm} {layer[f'{norm}_passes']:.1f} passes" for norm in norms)
            print(f"{'x'.join(map(str, shape)):16s} {figures}", flush=True)
        models = {}
        for name in models_wanted:
            programs = {norm: compile_network(name, norm, args.batch, device, options[norm]) for norm in norms}
            models[name] = with_ratios(programs)
            for norm, program in programs.items():
                print(
                    f"{name} {norm}: {program.bytes / 1e9:.1f} GB moved, {program.flops / 1e12:.2f} TFLOP, "
                    f"{program.temporaries / 1e9:.2f} GB temporary, {program.copies} copies, {program.seconds:.0f} s",
                    flush=True,
                )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")}
        result = {"topology": args.topology, "device": device.device_kind, "batch": args.batch, "versions": versions}
        result["mask"] = args.mask
        print(json.dumps(result | {"layers": layers, "models": models}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
