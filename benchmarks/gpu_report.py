"""Everything worth knowing about a GPU in ten minutes, the most valuable first.

    python -m benchmarks.gpu_report [--directory=gpu_report] [--small] [--seconds=600] [--only=doctor,parity,...]

Each step is a command of its own: one that crashes the device does not end the others, and its JSON is in the directory as
soon as it ends. ``report.json`` lists what ran. Steps, in their order:

================  =====================================================================================================
doctor            ``gw_jax.doctor``: the kernels that fit ResNet-50 are checked; later steps use those that are right
parity            ``benchmarks.parity``: every kernel and formulation beside float64; ResNet-50, ResNeXt-101, RoI heads
train_step        ``benchmarks.train_step``: GW and BN, beside eager PyTorch where it is installed
layers            ``benchmarks.group_whitening``, bfloat16: beside copy, BN, GN, eager and compiled PyTorch
train_step_gn     the training step with GroupNorm, and with the plain formulation of Group Whitening
detection_step    ``benchmarks.detection_step``: Faster R-CNN
profile           the operations of the layer that is slowest beside BatchNorm, with their times
layers_float32    the layers in float32
================  =====================================================================================================

Every step has a limit of its own, and the last ones what is left of ``--seconds``. The exit code is 1 where a step failed;
one that ran out of time is listed with what it wrote.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from gw_jax.files import write_atomically

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Step:
    """One command: its name, its arguments after ``python -m``, arguments with ``--small``, and its limit in seconds.

    ``file_flag``: the flag with which it writes its JSON itself, bit by bit; else that is its last line.
    """

    name: str
    arguments: tuple[str, ...]
    small: tuple[str, ...]
    seconds: float
    file_flag: str = ""


def steps(directory: pathlib.Path, *, torch: bool) -> list[Step]:
    """All steps, the most valuable first."""
    beside = ("--torch",) if torch else ()
    compiled = ("--compile",) if torch else ()
    layers = ("benchmarks.group_whitening", "--json", "--jobs=10", "--rounds=9", "--implementations=plain")
    small_layers = ("--small", "--shapes=28x28x64")
    doctor = ("gw_jax.doctor", "--json", "--num-groups=64", "--batch=128")
    small_doctor = ("--model=resnet18", "--batch=2", "--image-size=32")
    parity = ("benchmarks.parity", "--jobs=6", "--no_autotuning", "--seconds=170")
    profile = ("benchmarks.layer_profile", "--json", f"--layers={directory}/layers.json", f"--trace={directory}/trace")
    train_step = ("benchmarks.train_step", "--json", "--jobs=4")
    detection_step = ("benchmarks.detection_step", "--json", "--jobs=3", "--no_eval")
    return [
        Step("doctor", doctor, small_doctor, 120),
        Step("parity", parity, ("--small", "--jobs=1"), 180, "--output"),
        Step("train_step", (*train_step, "--norms=gw,bn", *beside), ("--small",), 180),
        Step("layers", (*layers, *compiled), small_layers, 150),
        Step("train_step_gn", (*train_step, "--norms=gw,gw:plain,gn,bn"), ("--small", "--model=resnet18"), 150),
        Step("detection_step", detection_step, ("--small",), 180),
        Step("profile", profile, (), 60),
        Step("layers_float32", (*layers, "--dtype=float32"), small_layers, 150),
    ]


def run(step: Step, directory: pathlib.Path, *, small: bool, seconds: float) -> dict[str, Any]:
    """Runs a step for ``seconds`` at most, and writes its JSON and what else it printed."""
    target = directory / f"{step.name}.json"
    command = [sys.executable, "-m", *step.arguments, *(step.small if small else ())]
    if step.file_flag:
        command.append(f"{step.file_flag}={target}")
    began = time.monotonic()
    with (directory / f"{step.name}.log").open("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, text=True, start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # With the processes that it has started, which would keep the device busy.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        lines = log.read().splitlines()
    if not step.file_flag:
        found = _last_json(lines)
        if found is not None:
            write_atomically(target, json.dumps(found, indent=1) + "\n")
    state = "out of time" if code is None else "done" if code == 0 else f"failed with exit code {code}"
    return {
        "step": step.name,
        "state": state,
        "seconds": round(time.monotonic() - began, 1),
        "command": " ".join(["python", *command[1:]]),
        "file": target.name if target.exists() else None,
        "last_lines": [] if code == 0 else lines[-5:],
    }


def _last_json(lines: Sequence[str]) -> Any:
    """The last line that is a JSON object, or None."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def _torch_sees_a_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def main(arguments: list[str] | None = None) -> int:
    """Runs the steps and lists them. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("gpu_report"), help="for the results")
    parser.add_argument("--small", action="store_true", help="small shapes, to see that it runs, also on a CPU")
    parser.add_argument("--seconds", type=float, default=600, help="time for all steps")
    parser.add_argument("--only", default="", help="names of steps, in place of all")
    args = parser.parse_args(arguments)
    directory = args.directory.absolute()
    wanted = steps(directory, torch=not args.small and _torch_sees_a_gpu())
    names = [name for name in args.only.split(",") if name] or [step.name for step in wanted]
    if unknown := set(names) - {step.name for step in wanted}:
        parser.error(f"--only={args.only}: {', '.join(sorted(unknown))} is not known; see --help")
    directory.mkdir(parents=True, exist_ok=True)
    # Steps compile some programs in common.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
    began, done = time.monotonic(), []
    for step in (step for step in wanted if step.name in names):
        left = args.seconds - (time.monotonic() - began)
        if left < 5:
            done.append({"step": step.name, "state": "not run: no time left"})
        else:
            done.append(run(step, directory, small=args.small, seconds=min(left, step.seconds)))
        write_atomically(directory / "report.json", json.dumps({"small": args.small, "steps": done}, indent=1) + "\n")
        print(f"{step.name:15s} {done[-1]['state']}, {done[-1].get('seconds', 0):.0f} s", flush=True)
    return 1 if any(str(result["state"]).startswith("failed") for result in done) else 0


if __name__ == "__main__":
    sys.exit(main())
