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

SHAPES = [(112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]
# XLA's description of the card, as it makes one of an attached card.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 149000000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""


def find_cuda() -> pathlib.Path | None:
    """The directory of the package ``nvidia-cuda-nvcc-cu12``."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else [pathlib.Path(place) / "cuda_nvcc" for place in spec.submodule_search_locations or []]
    return next((place for place in places if (place / "bin" / "ptxas").exists()), None)


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
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={cuda} --xla_gpu_autotune_level=0 --xla_dump_to={dump}"
    os.environ["PATH"] = f"{cuda / 'bin'}{os.pathsep}{os.environ['PATH']}"
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from gw_jax import group_whiten
    from gw_jax.ops.kernels.placement import compiling_for

    device = topologies.get_topology_desc("", platform="cuda", target_config=H200, topology="1x1x1").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    parameter = jax.ShapeDtypeStruct(shape[-1:], jnp.float32, sharding=sharding)

    def step(x: jax.Array, scale: jax.Array, bias: jax.Array, cotangent: jax.Array) -> Any:
        def forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            return group_whiten(x, 64, scale=scale, bias=bias, relu=relu, implementation="kernel")

        y, pullback = jax.vjp(forward, x, scale, bias)
        return y, pullback(cotangent)

    began = time.perf_counter()
    with compiling_for(device):
        jax.jit(step).lower(x, parameter, parameter, x).compile()
    return {"shape": list(shape), "seconds": time.perf_counter() - began, "kernels": resources(dump, cuda)}


def main(arguments: list[str] | None = None) -> int:
    """Compiles and reports. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--relu", action="store_true", help="with the ReLU that follows in a network")
    parser.add_argument("--cuda", type=pathlib.Path, default=find_cuda())
    parser.add_argument("--one", help=argparse.SUPPRESS)  # HxWxC: the shape for a subprocess.
    args = parser.parse_args(arguments)
    if args.cuda is None or importlib.util.find_spec("jax_cuda12_plugin") is None:
        print(
            "error: the compiler for CUDA is not installed; install jax-cuda12-plugin and jax-cuda12-pjrt of the version "
            "of jax, and nvidia-cuda-nvcc-cu12, or give the directory of ptxas with --cuda.",
            file=sys.stderr,
        )
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
