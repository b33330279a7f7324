"""Memory traffic of Group Whitening on NVIDIA cards, beside BatchNorm and GroupNorm; compiled without a card.

    pip install "jax-cuda12-plugin==$JAX" "jax-cuda12-pjrt==$JAX" nvidia-cuda-nvcc-cu12  # $JAX: the version of jax
    python -m benchmarks.gpu_cost [--json] [--cards=A100,L4,T4,H100] [--batch=128] [--shapes=56x56x64,7x7x512] [--resnet50]
                                  [--implementations=auto,plain] [--cuda=DIRECTORY]

"auto" uses no kernel that no card has run; ``prefer_kernel`` does, with the extra ``jax-triton`` on an A100 or L4, too.

Operands and results of all instructions of the compiled program (:mod:`benchmarks.hlo`), without the scratch space of
libraries. For a layer: forward and backward, 64 groups, over the bytes of its input ("passes"), in bfloat16, and in
float16 on a T4. Besides: matrix products, kernels (instructions that run something), and temporary memory. ``--resnet50``:
the whole training step on images of 224 pixels, with Group Whitening at the paper's place (S1-B2) and BatchNorm elsewhere,
with BatchNorm, and with GroupNorm. Nothing runs and no time is measured.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import sys
import time
from typing import Any

from benchmarks import gpu, hlo
from gw_jax.errors import ConfigError

SHAPES = [(112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]
NUM_GROUPS = 64
FLOAT16 = ("T4",)  # Cards without bfloat16.


def describe(lowered: Any, unit: float) -> dict[str, float]:
    """Figures of a lowered program; bytes over ``unit``."""
    began = time.perf_counter()
    compiled = lowered.compile()
    cost = hlo.traffic(compiled.as_text())
    return {
        "passes": cost.bytes / unit,
        "gemms": cost.gemms,
        "kernels": cost.kernels,
        "temporary_passes": compiled.memory_analysis().temp_size_in_bytes / unit,
        "compile_seconds": time.perf_counter() - began,
    }


def layer_costs(card: str, device: Any, shape: tuple[int, ...], implementations: list[str]) -> dict[str, Any]:
    """The costs of the norms for an input ``[n, h, w, c]``: passes by name, and all figures in "details"."""
    import jax

    from benchmarks.steps import lower_layer

    dtype = "float16" if card in FLOAT16 else "bfloat16"
    norms: dict[str, tuple[str, dict[str, Any]]] = {
        name: ("gw", {"num_groups": NUM_GROUPS, "implementation": name}) for name in implementations
    }
    norms |= {"bn": ("bn", {}), "gn": ("gn", {"num_groups": 32})}
    sharding = jax.sharding.SingleDeviceSharding(device)
    details = {}
    for name, (norm, options) in norms.items():
        with gpu.lowering_for(device):
            lowered = lower_layer(norm, shape, dtype, sharding, **options)
        details[name] = describe(lowered, 2 * math.prod(shape))
    return {
        "shape": list(shape),
        "dtype": dtype,
        **{name: figures["passes"] for name, figures in details.items()},
        "details": details,
    }


def network_costs(card: str, device: Any, batch: int, implementations: list[str]) -> dict[str, Any]:
    """The costs of the training step of ResNet-50 by norm, in GB, and Group Whitening's bytes over BatchNorm's.

    "gw_over_bn_bytes" is of the first implementation.
    """
    from benchmarks.steps import make_steps
    from gw_jax.classification import ClassificationConfig, DataConfig, ModelConfig, NormConfig

    if card in FLOAT16:
        raise ConfigError(f"Training in float16 is not supported, and a {card} has no bfloat16; leave it out with --cards.")
    norms: dict[str, tuple[str, NormConfig]] = {
        f"gw_{name}": ("gw", NormConfig(num_groups=NUM_GROUPS, implementation=name))  # type: ignore[arg-type]
        for name in implementations
    }
    norms |= {"bn": ("bn", NormConfig()), "gn": ("gn", NormConfig(num_groups=32))}
    costs = {}
    for name, (norm, options) in norms.items():
        config = ClassificationConfig(
            dtype="bfloat16",
            data=DataConfig(name="imagenet2012", image_size=224, batch_size=batch, eval_batch_size=batch),
            model=ModelConfig(name="resnet50", norm=norm, norm_options=options),
        )
        with gpu.lowering_for(device):
            lowered = make_steps(config, [device]).lower["train"]()
        figures = describe(lowered, 1e9)
        costs[name] = {key.replace("passes", "gigabytes"): value for key, value in figures.items()}
        print(f"{card:5s} ResNet-50 step: {name} {costs[name]['gigabytes']:.1f} GB", flush=True)
    over_bn = {
        f"{name}_over_bn_bytes": costs[name]["gigabytes"] / costs["bn"]["gigabytes"] for name in costs if name != "bn"
    }
    return costs | over_bn | {"gw_over_bn_bytes": over_bn[f"gw_{implementations[0]}_over_bn_bytes"]}


def with_means(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The layers of a card, and the geometric mean of the passes of "auto" over those of "plain"."""
    result: dict[str, Any] = {"layers": layers}
    if layers and all("auto" in layer and "plain" in layer for layer in layers):
        logs = [math.log(layer["auto"] / layer["plain"]) for layer in layers]
        result["auto_over_plain"] = math.exp(sum(logs) / len(logs))
    return result


def main(arguments: list[str] | None = None) -> int:
    """Compiles and reports. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--cards", default="A100,L4,T4,H100", help=f"of {', '.join(gpu.CARDS)}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--shapes", help="HxWxC; default: those of ResNet-50; empty for none")
    parser.add_argument("--implementations", default="auto,plain", help="of Group Whitening")
    parser.add_argument("--resnet50", action="store_true", help="the training step of ResNet-50, too; not on a T4")
    parser.add_argument("--cuda", type=pathlib.Path, default=gpu.find_cuda())
    args = parser.parse_args(arguments)
    cards, implementations = args.cards.split(","), args.implementations.split(",")
    if unknown := set(cards) - set(gpu.CARDS):
        parser.error(f"--cards={args.cards}: {', '.join(sorted(unknown))} is not known; choose of {', '.join(gpu.CARDS)}")
    shapes = SHAPES
    if args.shapes is not None:
        shapes = [tuple(map(int, text.split("x"))) for text in args.shapes.split(",") if text]
    try:
        gpu.prepare(args.cuda)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = {}
    for card in cards:
        device, layers = gpu.device(card), []
        for shape in shapes:
            layers.append(layer_costs(card, device, (args.batch, *shape), implementations))
            names = (*implementations, "bn", "gn")
            figures = "  ".join(f"{name} {layers[-1][name]:.1f}" for name in names)
            print(f"{card:5s} {'x'.join(map(str, layers[-1]['shape'])):16s} passes: {figures}", flush=True)
        results[card] = with_means(layers)
        if "auto_over_plain" in results[card]:
            print(f"{card:5s} auto over plain, geometric mean: {results[card]['auto_over_plain']:.2f}", flush=True)
        if args.resnet50 and card not in FLOAT16:
            results[card]["resnet50"] = network_costs(card, device, args.batch, implementations)
    if args.json:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "jax-cuda12-plugin", "flax")}
        print(json.dumps({"batch": args.batch, "versions": versions, "cards": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
