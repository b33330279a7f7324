"""Compiles the GPU kernels of Group Whitening for an H200 on a machine without a GPU, and reports their resources.

    pip install "jax-cuda12-plugin==$JAX" "jax-cuda12-pjrt==$JAX" nvidia-cuda-nvcc-cu12  # $JAX: the version of jax
    python -m benchmarks.gpu_compile [--json] [--batch=256] [--dtype=bfloat16] [--relu] [--cuda=DIRECTORY]

For every shape at which ResNet-50 whitens: registers per thread, bytes of registers that are spilled, shared memory of a
program, and seconds to compile. A kernel that compiles fits the card; nothing is run and no time is measured.
``--cuda``: where ``bin/ptxas`` and ``nvvm/libdevice`` are; by default those of the package above.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import gpu

SHAPES = [(112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]


def resources(dump: pathlib.Path, cuda: pathlib.Path) -> dict[str, dict[str, int]]:
    """Registers, spilled bytes and shared memory by kernel, from what XLA has written to ``dump``."""
    found = {}
    plans = "".join(path.read_text() for path in dump.glob("*thunk_sequence.txt"))
    for path in dump.glob("*.ptx"):
        entry = re.search(r"\.visible \.entry (group_whitening\w*)", path.read_text())
        if entry is None:
            continue
        command = [cuda / "bin" / "ptxas", "-v", "-arch=sm_90a", path, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        shared = re.findall(rf" {entry[1]} grid:.*shared_memory: (\d+) bytes", plans)
        found[entry[1]] = {
            "registers": int(re.findall(r"Used (\d+) registers", said)[-1]),
            "spilled_bytes": int(re.findall(r"(\d+) bytes spill stores", said)[-1]),
            "shared_memory": int(shared[0]),
        }
    if len(found) != 2:
        raise RuntimeError(f"found the kernels {sorted(found)} in what XLA has written to {dump}; there should be two")
    return found


def compile_kernels(
    shape: tuple[int, ...], dtype: str, relu: bool, dump: pathlib.Path, cuda: pathlib.Path
) -> dict[str, Any]:
    """Compiles output and gradients for an input ``[n, h, w, c]``; run in a process of its own, whose dump is ``dump``."""
    gpu.prepare(cuda, f"--xla_dump_to={dump}")
    import jax
    import jax.numpy as jnp

    from gw_jax import group_whiten

    device = gpu.device("H200")
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    parameter = jax.ShapeDtypeStruct(shape[-1:], jnp.float32, sharding=sharding)

    def step(x: jax.Array, scale: jax.Array, bias: jax.Array, cotangent: jax.Array) -> Any:
        def forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            return group_whiten(x, 64, scale=scale, bias=bias, relu=relu, implementation="kernel")

        y, pullback = jax.vjp(forward, x, scale, bias)
        return y, pullback(cotangent)

    began = time.perf_counter()
    with gpu.lowering_for(device):
        lowered = jax.jit(step).lower(x, parameter, parameter, x)
    lowered.compile()
    return {"shape": list(shape), "seconds": time.perf_counter() - began, "kernels": resources(dump, cuda)}


def main(arguments: list[str] | None = None) -> int:
    """Compiles and reports. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--relu", action="store_true", help="with the ReLU that follows in a network")
    parser.add_argument("--cuda", type=pathlib.Path, default=gpu.find_cuda())
    parser.add_argument("--one", help=argparse.SUPPRESS)  # HxWxC: the shape for a subprocess.
    args = parser.parse_args(arguments)
    if args.cuda is None or importlib.util.find_spec("jax_cuda12_plugin") is None:
        print(f"error: {gpu.NOT_INSTALLED}", file=sys.stderr)
        return 1
    if args.one:
        shape = (args.batch, *map(int, args.one.split("x")))
        with tempfile.TemporaryDirectory() as dump:
            print(json.dumps(compile_kernels(shape, args.dtype, args.relu, pathlib.Path(dump), args.cuda)))
        return 0
    cases = []
    for shape in SHAPES:
        one = ["--one", "x".join(map(str, shape)), f"--batch={args.batch}", f"--dtype={args.dtype}", f"--cuda={args.cuda}"]
        one += ["--relu"] if args.relu else []
        command = [sys.executable, "-m", "benchmarks.gpu_compile", *one]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        cases.append(json.loads(done.stdout.splitlines()[-1]))
        for name, kernel in cases[-1]["kernels"].items():
            print(
                f"{'x'.join(map(str, shape)):12s} {name}: {kernel['registers']} registers, {kernel['spilled_bytes']} bytes "
                f"spilled, {kernel['shared_memory'] >> 10} KiB shared",
                flush=True,
            )
    if args.json:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "jax-cuda12-plugin")}
        print(
            json.dumps(
                {
                    "card": "NVIDIA H200",
                    "dtype": args.dtype,
                    "batch": args.batch,
                    "relu": args.relu,
                    "versions": versions,
                    "cases": cases,
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
