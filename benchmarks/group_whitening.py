"""The time of one Group Whitening layer beside BatchNorm, GroupNorm, PyTorch's Group Whitening and a copy of its input.

    python -m benchmarks.group_whitening [--json] [--small] [--batch=N] [--dtype=float32] [--rounds=15] [--compile]
                                         [--networks=resnet50,resnext101] [--implementations=kernel,matmul,plain]
                                         [--shapes=56x56x64,7x7x512] [--jobs=1]

Forward, and forward with the gradients of input, scale and bias, for every shape at which the networks of the paper whiten
(64 groups, 5 iterations). Medians of interleaved runs; compilation is apart. "ours" is the choice of the layer;
``--implementations`` adds columns for forced ones. PyTorch's layer is the one of ``benchmarks/torch_peer.py``, eager and,
with ``--compile``, through ``torch.compile``; without PyTorch its columns are null. A ratio is this project's time over the
other's: below 1 is faster. On an accelerator a run is as many calls in flight as take 10 ms, so that the time to start one
does not count where it is hidden. ``--jobs``: programs that are compiled at a time.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

# Before JAX starts: on a GPU it would take most of the memory, and PyTorch needs some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import machine
from benchmarks.timing import interleaved_medians
from gw_jax.nn import BatchNorm, GroupNorm, GroupWhitening
from gw_jax.ops import check_kernels

# The inputs [h, w, c] of the normalisations that GW replaces: the stem, and the second norm of the blocks.
SHAPES: dict[str, list[tuple[int, int, int]]] = {
    "resnet50": [(112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)],
    "resnext101": [(112, 112, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)],
}
NUM_GROUPS = 64


def jax_steps(layer: nnx.Module, x: jax.Array, cotangent: jax.Array) -> dict[str, Callable[[], Callable[[], object]]]:
    """Functions that compile ``layer`` and return one that starts it, "forward" and "forward+backward"."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def forward(params: Any, x: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        y = model(x)
        return y, nnx.split(model, nnx.Param, ...)[2]

    def both(params: Any, x: jax.Array, rest: Any, cotangent: jax.Array) -> Any:
        y, pullback, updated = jax.vjp(lambda params, x: forward(params, x, rest), params, x, has_aux=True)
        return y, pullback(cotangent), updated

    # The gradients need the same kernels. Without a check on this machine, the layer would use none.
    check_kernels(lambda params, x, rest: forward(params, x, rest)[0], params, x, rest)

    def compile_forward() -> Callable[[], object]:
        run = jax.jit(forward).lower(params, x, rest).compile()
        return lambda: run(params, x, rest)

    def compile_both() -> Callable[[], object]:
        run = jax.jit(both).lower(params, x, rest, cotangent).compile()
        return lambda: run(params, x, rest, cotangent)

    return {"forward": compile_forward, "forward+backward": compile_both}


def copy_step(x: jax.Array) -> Callable[[], Callable[[], object]]:
    """A function that compiles a copy of ``x`` and returns one that starts it."""

    def compile_copy() -> Callable[[], object]:
        run = jax.jit(lambda x: x.copy()).lower(x).compile()
        return lambda: run(x)

    return compile_copy


@dataclasses.dataclass
class Repeated:
    """Starts ``start`` ``count`` times and waits once for all of them."""

    start: Callable[[], object]
    wait: Callable[[Any], object]
    count: int = 1

    def __call__(self) -> None:
        """Runs."""
        for _ in range(self.count):
            last = self.start()
        self.wait(last)

    def fill(self, seconds: float, most: int = 50) -> None:
        """Chooses the ``count`` of calls that last ``seconds``."""
        self()
        began = time.perf_counter()
        self()
        self.count = max(1, min(most, math.ceil(seconds / (time.perf_counter() - began))))


def flax_batch_norm(channels: int, dtype: str) -> nnx.Module:
    """Flax's BatchNorm, in training."""
    return nnx.BatchNorm(channels, dtype=jnp.dtype(dtype), momentum=0.9, rngs=nnx.Rngs(0))


def measure(
    shape: tuple[int, ...],
    dtype: str,
    rounds: int,
    *,
    torch: bool,
    compiled: bool,
    implementations: Sequence[str] = (),
    jobs: int = 1,
    seconds: float = 0.0,
) -> list[dict[str, Any]]:
    """The two cases (forward, and forward+backward) of one shape ``[n, h, w, c]``.

    Args:
        shape: of the input.
        dtype: of the input.
        rounds: runs of every layer.
        torch: whether PyTorch's layer is measured.
        compiled: whether it also does through ``torch.compile``.
        implementations: of Group Whitening that are forced, beside the chosen one.
        jobs: programs that are compiled at a time.
        seconds: shortest duration of a run; 0 for one call.
    """
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(2))
    channels = shape[-1]

    def whitening(implementation: str) -> nnx.Module:
        return GroupWhitening(channels, num_groups=NUM_GROUPS, implementation=implementation, rngs=nnx.Rngs(0))

    layers = {
        "ours": whitening("auto"),
        **{name: whitening(name) for name in implementations},
        "bn": BatchNorm(channels, rngs=nnx.Rngs(0)),
        "flax_bn": flax_batch_norm(channels, dtype),
        "gn": GroupNorm(channels, num_groups=32, rngs=nnx.Rngs(0)),
    }
    steps = {name: jax_steps(layer, x, cotangent) for name, layer in layers.items()}
    cases = []
    for step in ("forward", "forward+backward"):
        builders = {name: build[step] for name, build in steps.items()} | {"copy": copy_step(x)}
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            started = dict(zip(builders, pool.map(lambda build: build(), builders.values()), strict=True))
        compile_seconds = time.perf_counter() - began
        runs = {name: Repeated(start, jax.block_until_ready) for name, start in started.items()}
        if torch:
            from benchmarks import torch_peer

            wait = torch_peer.synchronise
            runs["torch_eager"] = Repeated(torch_peer.layer_steps(shape, dtype, compiled=False)[step], wait)
            if compiled:
                runs["torch_compiled"] = Repeated(torch_peer.layer_steps(shape, dtype, compiled=True)[step], wait)
        for run in runs.values():
            run.fill(seconds)
        medians, _ = interleaved_medians(runs, rounds)
        times = {name: medians[name] / run.count for name, run in runs.items()}
        case: dict[str, Any] = {"shape": list(shape), "dtype": dtype, "step": step}
        for name in ("ours", *implementations, "torch_eager", "torch_compiled", "bn", "flax_bn", "gn", "copy"):
            case[f"{name}_ms"] = times.get(name)
        case["compile_seconds_of_all"] = compile_seconds
        for name in ("torch_eager", "torch_compiled", "bn", "copy"):
            if name in times:
                case["ratio_torch" if name == "torch_eager" else f"ratio_{name}"] = times["ours"] / times[name]
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
    parser.add_argument("--shapes", help="HxWxC, instead of those of --networks")
    parser.add_argument("--compile", action="store_true", help="PyTorch through torch.compile, too")
    parser.add_argument("--implementations", default="", help="of Group Whitening, forced: kernel, matmul, plain")
    parser.add_argument("--jobs", type=int, default=1, help="programs that are compiled at a time")
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
    if args.shapes:
        shapes = dict.fromkeys(tuple(map(int, text.split("x"))) for text in args.shapes.split(","))
    cases = []
    for h, w, c in shapes:
        shape = (batch, h // 7, w // 7, c) if args.small else (batch, h, w, c)
        found = measure(
            shape,
            dtype,
            2 if args.small else args.rounds,
            torch=torch,
            compiled=args.compile,
            implementations=[name for name in args.implementations.split(",") if name],
            jobs=args.jobs,
            seconds=0.0 if on_cpu else 0.01,
        )
        for case in found:
            cases.append(case)
            times = "  ".join(f"{name[:-3]} {value:.3f}" for name, value in case.items() if name.endswith("_ms") and value)
            print(f"{'x'.join(map(str, shape)):16s} {case['step']:17s} {times}", flush=True)
    result = {
        **machine.describe("flax", *(["torch"] if torch else [])),
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
