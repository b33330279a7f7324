"""Checks group whitening and the other norms on the device at hand against their definition in float64.

    python -m benchmarks.parity [--json] [--output=FILE] [--small] [--jobs=1] [--seconds=600]
                                [--implementations=kernel,matmul,plain] [--no_autotuning]
                                [--kinds=whitening,hard_inputs,layers,inverse_sqrt] [--dtypes=bfloat16,float32]

For every shape at which ResNet-50 and ResNeXt-101 whiten, and for odd ones, in bfloat16 and float32: the largest error
of the output and of the gradients, relative to the largest value, for every implementation. Then NaN, constant samples,
extreme magnitudes, repeated runs, ``vmap`` and ``shard_map``; the other norms; the inverse square roots. A kernel belongs
in ``gw_jax/ops/kernels/verified.py`` for a kind of device only where this passes there. (On a user's machine,
``python -m gw_jax.doctor`` and ``train.py`` make a shorter check.)

Checks run in ``--jobs`` processes: one that crashes the device's context does not end the others. ``FILE`` is
written after every check, so a time limit loses nothing. ``--no_autotuning``: XLA does not try out its own matrix products
on a GPU, which takes most of the time; the kernels are not affected. The exit code is 1 where a check fails.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

# Before JAX starts: several processes share a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


from benchmarks import machine, parity_checks
from benchmarks.parity_checks import Case

RESNET50 = [(112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]
RESNEXT101 = [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]
NORMS = ("bn", "gn", "ln", "in", "gw", "gw_zca", "iternorm", "iternorm_sigma", "dbn")


def whitening_cases(small: bool) -> list[Case]:
    """The calls to check."""
    if small:
        return [
            Case((2, 7, 7, 64), 64, "float32", relu=True),
            Case((2, 7, 7, 32), 16, "bfloat16"),
            Case((1, 4, 4, 32), 32, "float32", affine=False),
        ]
    types = ("bfloat16", "float32")
    cases = [Case((8, *shape), 64, dtype, relu) for shape in RESNET50 for dtype in types for relu in (False, True)]
    cases += [Case((8, *shape), 64, dtype, relu=dtype == "bfloat16") for shape in RESNEXT101 for dtype in types]
    odd = [
        ((8, 7, 7, 64), 64),  # Fewer positions than a tile.
        ((8, 4, 4, 64), 64),  # As few as a product needs.
        ((1, 13, 12, 64), 64),  # Tiles in part, one sample.
        ((8, 5, 3, 128), 64),
        ((1, 56, 56, 64), 64),
        ((8, 7, 7, 16), 16),
        ((8, 9, 9, 64), 32),
        ((8, 28, 28, 128), 16),  # 8 channels per group.
        ((8, 7, 7, 1024), 16),  # 64 channels per group: one position per tile in float32.
        ((3, 1, 1, 1024), 16),
        ((33, 7, 7, 512), 32),
    ]
    cases += [Case(shape, groups, dtype) for shape, groups in odd for dtype in types]
    cases += [Case((8, 14, 14, 256), 64, dtype, num_iterations=2) for dtype in types]
    cases += [Case((8, 14, 14, 256), 64, dtype, num_iterations=8, epsilon=1e-3) for dtype in types]
    cases += [Case((8, 14, 14, 256), 64, dtype, affine=False, relu=True) for dtype in types]
    # Regions in the heads of a detector.
    cases += [Case(shape, 64, dtype) for shape in ((128, 7, 7, 256), (64, 14, 14, 256)) for dtype in types]
    return [
        *cases,
        Case((8, 14, 14, 256), 64, "float32", num_iterations=14, epsilon=1e-2),
        Case((256, 56, 56, 64), 64, "bfloat16", relu=True),
    ]


KINDS = ("whitening", "hard_inputs", "layers", "inverse_sqrt")


def checks(small: bool, implementations: list[str], kinds: list[str], dtypes: list[str]) -> list[tuple[str, Any]]:
    """All checks, as (kind, function without arguments); the longest first."""
    found: list[tuple[str, Any]] = []
    hard = (
        [Case((4, 7, 7, 64), 64, "float32")]
        if small
        else [
            Case((8, 28, 28, 128), 64, "float32"),
            Case((8, 28, 28, 128), 64, "bfloat16", relu=True),
            Case((8, 13, 12, 64), 64, "bfloat16"),
            Case((8, 7, 7, 512), 64, "bfloat16"),
        ]
    )
    for case, name in itertools.product(hard, implementations):
        # The others are compared with the definition; one type suffices for the products.
        if case.dtype in dtypes and (name == "kernel" or (name == "matmul" and case is hard[0])):
            found.append(("hard_inputs", lambda case=case, name=name: parity_checks.check_hard_inputs(case, name)))
    for case in (case for case in whitening_cases(small) if case.dtype in dtypes):
        found.append(("whitening", lambda case=case: parity_checks.check_whitening(case, implementations)))
    shape = (4, 5, 5, 32) if small else (16, 14, 14, 128)
    for name, train in itertools.product(NORMS[:2] if small else NORMS, (True, False)):
        found.append(("layers", lambda name=name, train=train: parity_checks.check_layer(name, shape, train=train)))
    roots = (
        [("newton", 5, 10.0)]
        if small
        else [
            *itertools.product(("newton",), (5, 14, 20), (10.0, 1e4)),
            *itertools.product(("zca",), (0,), (10.0, 1e4)),
        ]
    )
    for method, iterations, condition in roots:
        check = lambda m=method, i=iterations, c=condition: parity_checks.check_inverse_sqrt(m, i, c)  # noqa: E731
        found.append(("inverse_sqrt", check))
    return [(kind, check) for kind, check in found if kind in kinds]


def run_unclaimed(claims: pathlib.Path, wanted: list[tuple[str, Any]]) -> None:
    """Runs the checks that no other process has claimed in a directory, and prints a line of JSON for each."""
    for number, (kind, check) in enumerate(wanted):
        try:
            (claims / str(number)).mkdir()
        except FileExistsError:
            continue
        began = time.perf_counter()
        try:
            result = check()
        except Exception as error:  # Reported as a failure of this check.
            result = {"error": f"{type(error).__name__}: {str(error)[:500]}", "passed": parity_checks.is_no_kernel(error)}
        result |= {"number": number, "kind": kind, "seconds": round(time.perf_counter() - began, 2)}
        print("CHECK " + json.dumps(result), flush=True)


def describe(result: dict[str, Any]) -> str:
    """One line about one check."""
    state = "ok  " if result["passed"] else "FAIL"
    label = {
        key: result[key]
        for key in ("shape", "num_groups", "dtype", "relu", "norm", "train", "method", "implementation", "condition")
        if key in result
    }
    if result["kind"] == "whitening":
        worst = {
            name: e if isinstance(e, str) else f"y {e['y']:.1e} grad {max(v for k, v in e.items() if k != 'y'):.1e}"
            for name, e in result.get("errors", {}).items()
        }
    elif result["kind"] == "hard_inputs":
        worst = {key: value for key, value in result.items() if value is False and key not in ("relu", "passed", "affine")}
    else:
        worst = {key: f"{value:.1e}" for key, value in result.get("errors", {}).items()}
    return f"{state} {result['kind']} {label} {worst} {result.get('error', '')} {result['seconds']} s"


def main(arguments: list[str] | None = None) -> int:
    """Runs all checks and reports. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--output", type=pathlib.Path, help="file for the same object")
    parser.add_argument("--small", action="store_true", help="a few small checks, to see that it runs")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=float, default=600, help="time limit")
    parser.add_argument("--implementations", default="kernel,matmul,plain")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--dtypes", default=",".join(parity_checks.BOUNDS))
    parser.add_argument("--no_autotuning", action="store_true", help="of XLA's own products on a GPU")
    # Where the processes that this one starts claim checks.
    parser.add_argument("--claims", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    implementations = args.implementations.split(",")
    wanted = checks(args.small, implementations, args.kinds.split(","), args.dtypes.split(","))
    if args.claims:
        run_unclaimed(args.claims, wanted)
        return 0
    began, count = time.monotonic(), len(wanted)
    lines: queue.Queue[str] = queue.Queue()
    command = [sys.executable, "-m", "benchmarks.parity", f"--implementations={args.implementations}"]
    command += [f"--kinds={args.kinds}", f"--dtypes={args.dtypes}"]
    command += ["--small"] if args.small else []
    command += [f"--claims={tempfile.mkdtemp(prefix='parity_')}"]
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if args.jobs > 1 else {})
    if args.no_autotuning:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(args.jobs)]

    def read(process: Any) -> None:
        for line in process.stdout:
            lines.put(line)

    for process in processes:
        threading.Thread(target=read, args=(process,), daemon=True).start()
    results: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        **machine.describe("flax", "numpy"),
        "implementations": implementations,
        "autotuning": not args.no_autotuning,
        "bounds": parity_checks.BOUNDS,
        "checks": results,
    }
    while len(results) < count and time.monotonic() - began < args.seconds:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            if all(process.poll() is not None for process in processes) and lines.empty():
                break
            continue
        if line.startswith("CHECK "):
            results.append(json.loads(line[6:]))
            print(describe(results[-1]), flush=True)
            report |= {"expected": count, "passed": sum(result["passed"] for result in results)}
            if args.output:
                args.output.write_text(json.dumps(report, indent=1))
        else:
            print(line, end="", flush=True)
    for process in processes:
        process.kill()
    results.sort(key=lambda result: result["number"])
    if args.output:
        args.output.write_text(json.dumps(report, indent=1))
    failed = count - report.get("passed", 0)
    print(f"{count - failed} of {count} checks passed, {count - len(results)} not run, on {report['device']}")
    if args.json:
        print(json.dumps(report))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
