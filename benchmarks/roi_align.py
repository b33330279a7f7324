"""The time and memory of ROIAlign by matrix products and by gathering, beside each other.

    python -m benchmarks.roi_align [--json] [--small] [--rounds=3] [--dtype=float32] [--topology=v5e:2x2]

Forward, and forward with the gradient of the features. "map": 512 boxes on one map of 200 x 336 x 256, the level of
stride 4 of an image of 800 x 1344. "pyramid": 512 boxes, 7 x 7 bins, each on its level of the pyramid of such an image, for
the box head. "masks": 128 boxes, 14 x 14 bins, for the mask head. Both ways must give the same, or the benchmark fails.
Medians of interleaved runs in milliseconds; compilation is apart. ``temp_bytes`` is what the compiled program needs beside
its arguments and results. With ``--topology``, programs are compiled for one chip of a TPU slice instead, without a TPU
(extra ``plan``): its memory, the bytes that it moves and its operations are reported, and no time. A loop over chunks of
boxes counts as one iteration there; ``chunks`` says how many there are.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleaved_medians
from gw_jax.detection.pooler import pool
from gw_jax.errors import ConfigError
from gw_jax.ops.kernels.placement import compiling_for
from gw_jax.ops.roi_align import roi_align

IMPLEMENTATIONS = ("gather", "matmul")
# Boxes and bins per side.
CASES = {"map": (512, 7), "pyramid": (512, 7), "masks": (128, 14)}
STEPS = ("forward", "forward+backward")


def make_case(name: str, dtype: str, *, small: bool) -> tuple[Callable[..., jax.Array], list[Any]]:
    """A function of an implementation, features and boxes, and the last two."""
    number, bins = CASES[name]
    height, width, channels = (96, 128, 8) if small else (800, 1344, 256)
    number = 16 if small else number
    rng = np.random.default_rng(0)
    # Sides from 16 pixels to the image's, most of them small, as proposals are.
    side = np.exp(rng.uniform(np.log(16), np.log(120 if name == "map" else height), (number, 2)))
    centre = rng.uniform(0, 1, (number, 2)) * [width, height]
    boxes = np.clip(np.concatenate([centre - side / 2, centre + side / 2], -1), 0, [width - 1, height - 1] * 2)
    boxes = jnp.asarray(boxes, jnp.float32)

    def level(stride: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((height // stride, width // stride, channels), np.float32), dtype)

    if name == "map":
        return lambda way, features, boxes: roi_align(features, boxes, 1 / 4, bins, implementation=way), [level(4), boxes]
    pyramid = {f"P{i}": level(2**i)[None] for i in range(2, 6)}
    valid = jnp.array([[height, width]])
    return lambda way, pyramid, boxes: pool(pyramid, valid, boxes[None], bins, implementation=way), [pyramid, boxes]


def make_step(function: Callable[..., jax.Array], way: str, step: str) -> Callable[..., Any]:
    """The values, and the gradient for a cotangent where ``step`` has one."""

    def forward(features: Any, boxes: jax.Array, cotangent: jax.Array) -> Any:
        return function(way, features, boxes)

    def both(features: Any, boxes: jax.Array, cotangent: jax.Array) -> Any:
        value, pullback = jax.vjp(lambda features: function(way, features, boxes), features)
        return value, pullback(cotangent)[0]

    return forward if step == "forward" else both


def require_equal(results: dict[str, Any], dtype: str) -> None:
    """Fails unless all results agree to rounding."""
    tolerance = 1e-4 if dtype == "float32" else 0.03
    first, *others = ([np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(result)] for result in results.values())
    for other in others:
        for one, two in zip(first, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * np.abs(one).max())


def measure(name: str, dtype: str, rounds: int, *, small: bool = False) -> list[dict[str, Any]]:
    """The two steps of a case."""
    function, arguments = make_case(name, dtype, small=small)
    cotangent = jnp.ones(jax.eval_shape(lambda *args: function("gather", *args), *arguments).shape, dtype)
    cases = []
    for step in STEPS:
        case: dict[str, Any] = {"case": name, "boxes": len(arguments[1]), "dtype": dtype, "step": step}
        runs = {}
        for way in IMPLEMENTATIONS:
            began = time.perf_counter()
            run = jax.jit(make_step(function, way, step)).lower(*arguments, cotangent).compile()
            case[f"{way}_compile_seconds"] = time.perf_counter() - began
            case[f"{way}_temp_bytes"] = run.memory_analysis().temp_size_in_bytes
            runs[way] = lambda run=run: jax.block_until_ready(run(*arguments, cotangent))
        require_equal({way: run() for way, run in runs.items()}, dtype)
        medians, _ = interleaved_medians(runs, rounds)
        case |= {f"{way}_ms": medians[way] for way in IMPLEMENTATIONS}
        case["ratio_matmul"] = medians["matmul"] / medians["gather"]
        cases.append(case)
    return cases


def compile_for_tpu(name: str, dtype: str, device: Any, *, small: bool = False) -> list[dict[str, Any]]:
    """The two steps of a case, compiled for a device that is not there."""
    from benchmarks import tpu

    function, arguments = make_case(name, dtype, small=small)
    sharding = jax.sharding.SingleDeviceSharding(device)
    output = jax.eval_shape(lambda *args: function("gather", *args), *arguments)
    described = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), (*arguments, output)
    )
    cases = []
    for step in STEPS:
        case: dict[str, Any] = {"case": name, "boxes": len(arguments[1]), "dtype": dtype, "step": step}
        for way in IMPLEMENTATIONS:
            began = time.perf_counter()
            with compiling_for(device):
                traced = jax.jit(make_step(function, way, step)).trace(*described)
                lowered = traced.lower()
            case[f"{way}_chunks"] = max([1, *map(int, re.findall(r"length=(\d+)", str(traced.jaxpr)))])
            program = tpu.describe(lowered.compile(), time.perf_counter() - began)
            case |= {f"{way}_compile_seconds": program.seconds, f"{way}_temp_bytes": program.temporaries}
            case |= {f"{way}_bytes": program.bytes, f"{way}_flops": program.flops}
        cases.append(case)
    return cases


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints a table, and one JSON object where wanted. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--small", action="store_true", help="a small image and few boxes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--dtype", help="of the features; default: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--topology", help="compile for a TPU slice such as v5e:2x2, and run nothing")
    args = parser.parse_args(arguments)
    if unknown := set(args.cases.split(",")) - set(CASES):
        parser.error(f"--cases={args.cases}: {', '.join(sorted(unknown))} is not known; choose of {', '.join(CASES)}")
    device = None
    if args.topology:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)  # It cannot hold programs of devices that are not there.
        from benchmarks import tpu

        try:
            device = tpu.devices(args.topology)[0]
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    on_cpu = jax.default_backend() == "cpu" and device is None
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    cases = []
    for name in args.cases.split(","):
        if device is None:
            found = measure(name, dtype, args.rounds, small=args.small)
        else:
            found = compile_for_tpu(name, dtype, device, small=args.small)
        for case in found:
            cases.append(case)
            figures = "  ".join(
                f"{key} {value:.4g}" for key, value in case.items() if key.startswith(IMPLEMENTATIONS) or "ratio" in key
            )
            print(f"{name:8s} {dtype} {case['step']:17s} {figures}", flush=True)
    if args.json:
        kind = platform.machine() if on_cpu else (device or jax.devices()[0]).device_kind
        result = {
            "platform": "tpu" if device else jax.default_backend(),
            "device": kind,
            "compiled_only": device is not None,
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
            "rounds": None if device else args.rounds,
            "cases": cases,
        }
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
