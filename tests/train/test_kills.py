"""A run with reading workers that is killed again and again, at any moment, ends with the numbers of one left in peace."""

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from gw_jax.train.throughput import is_timing

ROOT = pathlib.Path(__file__).parents[2]
# 8 epochs of 40 steps on the digits.
FLAGS = [
    "--config.data.batch_size=100",
    "--config.data.num_workers=1",
    "--config.num_epochs=8",
    "--config.model.name=mlp",
    "--config.model.norm=bn",
    "--config.model.width=32",
    "--config.log.every_steps=5",
    "--config.log.plot=False",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every_steps=8",
]
MOMENTS = ("step", "save", "evaluation", "worker")


def start(workdir, data_dir):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", f"--config.data.data_dir={data_dir}", *FLAGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)},
    )


def lines(workdir):
    path = workdir / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:  # Half a line.
            break
        found.append({name: value for name, value in values.items() if not is_timing(name)})
    return found


def workers_of(pid):
    """The processes that ``pid`` has started and that read data."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (path / "cmdline").read_text()
        except OSError:  # It has ended meanwhile.
            continue
        if parent == pid and "spawn_main" in command:
            found.append(int(path.name))
    return sorted(found)


def has_come(moment, workdir, pid, since, steps):
    """Whether ``moment`` is now, in a run that has come ``steps`` further than ``since``."""
    written = lines(workdir)
    last = written[-1]["step"] if written else 0
    if last < since + steps:
        return False
    if moment == "save":
        return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))
    if moment == "evaluation":
        return last % 40 == 0 and "eval/count" not in written[-1]
    return moment == "step" or bool(workers_of(pid))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the reading workers in /proc, which only Linux has")
def test_ten_kills_change_nothing(tmp_path, data_dir):
    process = start(tmp_path / "whole", data_dir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    expected = lines(tmp_path / "whole")
    assert [line["step"] for line in expected if "eval/count" in line] == list(range(40, 321, 40))

    workdir, rng, met = tmp_path / "killed", random.Random(0), []
    process = start(workdir, data_dir)
    for kill in range(10):
        moment, steps = MOMENTS[kill % len(MOMENTS)], rng.randrange(3, 12)
        since = lines(workdir)[-1]["step"] if lines(workdir) else 0
        while process.poll() is None and not has_come(moment, workdir, process.pid, since, steps):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        if process.poll() is None and moment == "worker" and (workers := workers_of(process.pid)):
            # The run starts another one by itself.
            os.kill(rng.choice(workers), signal.SIGKILL)
            met.append(moment)
            continue
        process.kill()
        _, errors = process.communicate()
        if process.returncode == -signal.SIGKILL:
            met.append(moment)
        else:
            assert process.returncode == 0, errors
        process = start(workdir, data_dir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert collections.Counter(met) == {"step": 3, "save": 3, "evaluation": 2, "worker": 2}
    assert lines(workdir) == expected
