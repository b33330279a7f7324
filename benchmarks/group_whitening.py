"""The time of one Group Whitening layer beside BatchNorm, GroupNorm, PyTorch's Group Whitening and a copy of its input.

    python -m benchmarks.group_whitening [--json] [--small] [--batch=N] [--dtype=float32] [--rounds=15] [--compile]
                                         [--networks=resnet50,resnext101]

Forward, and forward with the gradients of input, scale and bias, for every shape at which the networks of the paper whiten
(64 groups, 5 iterations). Medians of interleaved runs; compilation is apart. PyTorch's layer is the one of
``benchmarks/torch_peer.py``, eager and, with ``--compile``, through ``torch.compile``; without PyTorch its columns are
null. A ratio is this project's time over the other's: below 1 is faster.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
from collections.abc import Callable
from typing import Any

# Before JAX starts: on a GPU it would take most of the memory, and PyTorch needs some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.timing import interleaved_medians
from gw_jax.nn import BatchNorm, GroupNorm, GroupWhitening

# The inputs [h, w, c] of the normalisations that GW replaces: the stem, and the second norm of the blocks.
SHAPES: dict[str, list[tuple[int, int, int]]] = {
    "resnet50": [(112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)],
    "resnext101": [(112, 112, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)],
}
NUM_GROUPS = 64


def jax_steps(layer: nnx.Module, x: jax.Array, cotangent: jax.Array) -> dict[str, Callable[[], object]]:
    """Functions that run ``layer`` once, "forward" and "forward+backward", until the results are there."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def forward(params: Any, x: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        y = model(x)
        return y, nnx.split(model, nnx.Param, ...)[2]

    def both(params: Any, x: jax.Array, rest: Any, cotangent: jax.Array) -> Any:
        y, pullback, updated = jax.vjp(lambda params, x: forward(params, x, rest), params, x, has_aux=True)
        return y, pullback(cotangent), updated

    run_forward, run_both = jax.jit(forward), jax.jit(both)
    return {
        "forward": lambda: jax.block_until_ready(run_forward(params, x, rest)),
        "forward+backward": lambda: jax.block_until_ready(run_both(params, x, rest, cotangent)),
    }


def copy_step(x: jax.Array) -> Callable[[], object]:
    """A function that copies ``x`` once."""
    run = jax.jit(lambda x: x.copy())
    return lambda: jax.block_until_ready(run(x))


def flax_batch_norm(channels: int, dtype: str) -> nnx.Module:
    """Flax's BatchNorm, in training."""
    return nnx.BatchNorm(channels, dtype=jnp.dtype(dtype), momentum=0.9, rngs=nnx.Rngs(0))


def measure(shape: tuple[int, ...], dtype: str, rounds: int, *, torch: bool, compiled: bool) -> list[dict[str, Any]]:
    """The two cases (forward, and forward+backward) of one shape ``[n, h, w, c]``."""
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(2))
    channels = shape[-1]
    layers = {
        "ours": GroupWhitening(channels, num_groups=NUM_GROUPS, rngs=nnx.Rngs(0)),
        "bn": BatchNorm(channels, rngs=nnx.Rngs(0)),
        "flax_bn": flax_batch_norm(channels, dtype),
        "gn": GroupNorm(channels, num_groups=32, rngs=nnx.Rngs(0)),
    }
    runs = {name: jax_steps(layer, x, cotangent) for name, layer in layers.items()}
    if torch:
        from benchmarks import torch_peer

        runs["torch_eager"] = torch_peer.layer_steps(shape, dtype, compiled=False)
        if compiled:
            runs["torch_compiled"] = torch_peer.layer_steps(shape, dtype, compiled=True)
    cases = []
    for step in ("forward", "forward+backward"):
        chosen = {name: steps[step] for name, steps in runs.items()} | {"copy": copy_step(x)}
        medians, first = interleaved_medians(chosen, rounds)
        case: dict[str, Any] = {"shape": list(shape), "dtype": dtype, "step": step}
        for name in ("ours", "torch_eager", "torch_compiled", "bn", "flax_bn", "gn", "copy"):
            case[f"{name}_ms"] = medians.get(name)
        case["compile_ms"] = first["ours"] - medians["ours"]
        for name in ("torch_eager", "torch_compiled", "bn", "copy"):
            if name in medians:
                case["ratio_torch" if name == "torch_eager" else f"ratio_{name}"] = medians["ours"] / medians[name]
        cases.append(case)
    return cases


def geometric_mean(values: list[float]) -> float | None:
    """The geometric mean, or None of nothing."""
    return math.exp(sum(math.log(value) for value in values) / len(values)) if values else None


def main() -> None:
    """Measures, prints a table, and one JSON object where wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--small", action="store_true", help="small images and few rounds, to see that it runs")
    parser.add_argument("--batch", type=int, help="samples; default: 16 on a CPU, 128 elsewhere")
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", default="resnet50", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--compile", action="store_true", help="PyTorch through torch.compile, too")
    args = parser.parse_args()
    on_cpu = jax.default_backend() == "cpu"
    batch = args.batch or (2 if args.small else 16 if on_cpu else 128)
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    torch = importlib.util.find_spec("torch") is not None
    if unknown := set(args.networks.split(",")) - set(SHAPES):
        parser.error(
            f"--networks={args.networks}: {', '.join(sorted(unknown))} is not known; choose of {', '.join(SHAPES)}"
        )
    shapes = dict.fromkeys(shape for name in args.networks.split(",") for shape in SHAPES[name])
    cases = []
    for h, w, c in shapes:
        shape = (batch, h // 7, w // 7, c) if args.small else (batch, h, w, c)
        for case in measure(shape, dtype, 2 if args.small else args.rounds, torch=torch, compiled=args.compile):
            cases.append(case)
            times = "  ".join(f"{name[:-3]} {value:.2f}" for name, value in case.items() if name.endswith("_ms") and value)
            print(f"{'x'.join(map(str, shape)):16s} {case['step']:17s} {times}", flush=True)
    result = {
        "platform": jax.default_backend(),
        "device": platform.machine() if on_cpu else jax.devices()[0].device_kind,
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", *(["torch"] if torch else []))
        },
        "rounds": args.rounds,
        "cases": cases,
        "geomean_ratio_torch": geometric_mean([case["ratio_torch"] for case in cases if "ratio_torch" in case]),
        "geomean_ratio_bn": geometric_mean([case["ratio_bn"] for case in cases]),
    }
    print(f"geometric means: {result['geomean_ratio_torch'] or math.nan:.2f} of eager PyTorch's time, ", end="")
    print(f"{result['geomean_ratio_bn']:.2f} of BatchNorm's")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
