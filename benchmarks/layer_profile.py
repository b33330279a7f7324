"""The operations of one Group Whitening layer, forward and backward, with their times, from a profile of the device.

    python -m benchmarks.layer_profile [--json] [--shape=128x28x28x128] [--dtype=bfloat16] [--layers=FILE] [--trace=DIR]
                                       [--steps=10]

``--layers``: output of ``python -m benchmarks.group_whitening --json``, of which the layer is taken that is slowest beside
BatchNorm. The trace, for TensorBoard or XProf, is in ``--trace``.
"""

import argparse
import collections
import json
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import machine
from benchmarks.group_whitening import NUM_GROUPS, jax_steps
from gw_jax.nn import GroupWhitening

MOST_OPERATIONS = 40


def slowest(result: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    """Shape and type of the case, forward and backward, with the largest time over BatchNorm's."""
    cases = [case for case in result["cases"] if case["step"] == "forward+backward"]
    case = max(cases, key=lambda case: case["ratio_bn"])
    return tuple(case["shape"]), case["dtype"]


def operation_times(planes: Iterable[Any], steps: int) -> dict[str, float]:
    """Microseconds per step of each operation on the devices, the longest first.

    Args:
        planes: of a ``jax.profiler.ProfileData``. Where it has no device, as on a CPU, XLA's threads on the host count.
        steps: that were recorded.
    """
    planes = list(planes)
    lines = [line for plane in planes if plane.name.startswith("/device:") for line in plane.lines]
    # Other lines of a device, such as its modules and steps, count the same time again.
    lines = [line for line in lines if line.name.startswith(("Stream", "XLA Ops"))]
    if not lines:
        hosts = [line for plane in planes if plane.name.startswith("/host:CPU") for line in plane.lines]
        lines = [line for line in hosts if line.name.startswith("tf_XLA")]
    total: collections.Counter[str] = collections.Counter()
    for line in lines:
        for event in line.events:
            total[event.name] += event.duration_ns
    return {name: nanoseconds / steps / 1e3 for name, nanoseconds in total.most_common(MOST_OPERATIONS)}


def main(arguments: list[str] | None = None) -> None:
    """Records the steps, prints the operations, and one JSON object with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--shape", default="128x28x28x128", help="NxHxWxC")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=pathlib.Path, help="output of benchmarks.group_whitening, in place of both")
    parser.add_argument("--trace", type=pathlib.Path, help="directory of the trace")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args(arguments)
    shape, dtype = tuple(map(int, args.shape.split("x"))), args.dtype
    if args.layers:
        shape, dtype = slowest(json.loads(args.layers.read_text()))
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(2))
    layer = GroupWhitening(shape[-1], num_groups=NUM_GROUPS, rngs=nnx.Rngs(0))
    start = jax_steps(layer, x, cotangent)["forward+backward"]()
    jax.block_until_ready(start())
    with tempfile.TemporaryDirectory() as temporary:
        trace = args.trace or pathlib.Path(temporary)
        with jax.profiler.trace(str(trace)):
            for _ in range(args.steps):
                jax.block_until_ready(start())
        newest = max(trace.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        operations = operation_times(jax.profiler.ProfileData.from_file(str(newest)).planes, args.steps)
    print(f"{'x'.join(map(str, shape))}, {dtype}, forward and backward; microseconds per step:")
    for name, microseconds in operations.items():
        print(f"{microseconds:10.1f}  {name}")
    if args.json:
        result = {**machine.describe("flax"), "shape": shape, "dtype": dtype, "steps": args.steps}
        print(json.dumps(result | {"microseconds": operations}))


if __name__ == "__main__":
    main()
