"""Kills runs on the digits repeatedly, and compares their metrics with those of an undisturbed run.

    python -m tests.train.kills --kills=100 --seed=0

Every process gets the moment at which it kills itself by SIGKILL as an argument (see killed_run.py). So nothing depends on
timing, except where in a background write a kill falls. Then the same command is repeated. When a run has ended, another
one begins, until there were as many kills as requested; each run must end with the metrics of the undisturbed one.
"""

import argparse
import collections
import dataclasses
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from tests.helpers.runs import results

ROOT = pathlib.Path(__file__).parents[2]
# 4 epochs of 40 steps.
FLAGS = [
    "--config.data.batch_size=100",
    "--config.data.num_workers=1",
    "--config.num_epochs=4",
    "--config.model.name=mlp",
    "--config.model.norm=bn",
    "--config.model.width=32",
    "--config.log.every_steps=5",
    "--config.log.plot=False",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every_steps=8",
]
KINDS = ("start", "step", "save", "evaluation", "worker")
# Steps after which a run must have noticed that its workers died: fewer batches are read ahead.
STEPS_WITHOUT_WORKERS = 30
STARTS = (
    "import:jax",
    "import:orbax.checkpoint",
    "import:gw_jax.train.loop",
    "before:gw_jax.train.runner:claim_workdir",
    "after:gw_jax.train.runner:claim_workdir",
    "before:gw_jax.train.loop:Checkpoints",
    "after:gw_jax.train.loop:Checkpoints",
    "before:gw_jax.train.loop:MetricsWriter",
    "after:gw_jax.train.loop:MetricsWriter",
)
# Before and after the checksums get into the directory with its temporary name, and after it has got its final one.
CHECKSUMS = tuple(
    f"{when}:gw_jax.train.checkpoint:{function}"
    for function in ("write_checksums", "add_late_checksums")
    for when in ("before", "after")
)


@dataclasses.dataclass
class Report:
    """What happened.

    Attributes:
        kills: how many of each kind.
        moments: how many of each kind and moment.
        half_saves: kills in the middle of a save, which left a new directory with a temporary name.
        restarts: warnings of a run that it restarted its workers.
        runs: runs that went to their end.
        starts: processes.
        differences: what was wrong.
    """

    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    moments: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    half_saves: int = 0
    restarts: int = 0
    runs: int = 0
    starts: int = 0
    differences: list[str] = dataclasses.field(default_factory=list)


def choose(kind, rng):
    """The moments for one process; the last one ends it."""
    if kind == "start":
        return rng.choice(STARTS)
    if kind == "step":
        return rng.choice((f"step:{rng.randint(1, 20)}", f"line:{rng.randint(1, 5)}"))
    if kind == "save":
        return rng.choice((f"save:{rng.randint(1, 3)}:{rng.randint(0, 150)}", rng.choice(CHECKSUMS)))
    if kind == "evaluation":
        return rng.choice(("evaluation:1", f"batch:{rng.randint(1, 5)}"))
    step = rng.randint(1, 10)
    return f"workers:{step},step:{step + STEPS_WITHOUT_WORKERS}"


def start(workdir, data_dir, moments, cache):
    """Starts the run and waits until it ends or kills itself. Returns its exit code and its output."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    # A file, since the workers of a killed run keep a pipe open until they end.
    with tempfile.TemporaryFile("w+") as said:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "tests.train.killed_run", moments),
                *(f"--workdir={workdir}", f"--config.data.data_dir={data_dir}", *FLAGS),
            ],
            stdout=said,
            stderr=said,
            env={**os.environ, **environment},
            cwd=ROOT,
            check=False,
        )
        said.seek(0)
        return ended.returncode, said.read()


def unfinished(workdir):
    """What tells the unfinished checkpoints in ``workdir``: they stay until the next save, and names repeat."""
    return {(path.name, path.stat().st_mtime_ns) for path in (workdir / "checkpoints").glob("*tmp*")}


def kill_repeatedly(count, seed, directory, data_dir, tell=lambda text: None):
    """Kills runs in ``directory`` until there were ``count`` kills; see :class:`Report`."""
    cache = directory / "cache"
    code, said = start(directory / "whole", data_dir, "none", cache)
    assert code == 0, said
    expected, report, rng = results(directory / "whole"), Report(), random.Random(seed)
    kinds = itertools.cycle(KINDS)
    # The last one is None as soon as the run was killed once.
    workdir = fresh = directory / "run-0"
    kind = next(kinds)
    moments = choose(kind, rng)

    def begin(moments):
        code, said = start(workdir, data_dir, moments, cache)
        report.starts += 1
        report.restarts += said.count("a reading worker died")
        if code not in (0, -signal.SIGKILL) or "Traceback" in said:
            report.differences.append(f"{workdir.name} with {moments}: exit code {code}\n{said}")
        return code, said

    def compare():
        report.runs += 1
        if results(workdir) != expected:
            report.differences.append(f"{workdir.name}: its metrics are not those of the undisturbed run")

    while report.kills.total() < count and not report.differences:
        before = unfinished(workdir)
        code, said = begin(moments)
        if "KILLED 1 WORKERS" in said or "KILLED 2 WORKERS" in said:
            report.kills["worker"] += 1
        if code == 0:
            # The run has ended before the moment; the next one gets there.
            compare()
            if workdir == fresh:
                report.differences.append(f"{workdir.name}: {moments} never comes")
            workdir = fresh = directory / f"run-{report.runs}"
            continue
        fresh = None
        report.kills["step" if kind == "worker" else kind] += 1
        report.moments[f"{kind} {moments.rstrip('0123456789:')}"] += 1
        if kind == "worker" and "a reading worker died" not in said:
            report.differences.append(f"{workdir.name} with {moments}: the workers were not restarted\n{said}")
        report.half_saves += not unfinished(workdir) <= before
        tell(f"{report.kills.total()} kills, {workdir.name}, {moments}")
        kind = next(kinds)
        moments = choose(kind, rng)
    code, said = begin("none")
    if code == 0:
        compare()
    else:
        report.differences.append(f"{workdir.name} could not be resumed: exit code {code}\n{said}")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", help="where the digits are, or are prepared")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        report = kill_repeatedly(
            options.kills,
            options.seed,
            pathlib.Path(directory),
            options.data_dir or f"{directory}/data",
            lambda text: print(text, flush=True),
        )
    for moment, number in sorted(report.moments.items()):
        print(f"{number:4d}  {moment}")
    print(f"kills: {dict(report.kills)}, {report.half_saves} of them in the middle of a save")
    print(f"{report.runs} runs ended in {report.starts} starts; {report.restarts} restarts of the reading workers")
    print("\n".join(report.differences) or "all as undisturbed")
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
