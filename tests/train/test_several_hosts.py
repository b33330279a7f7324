"""Two processes of two devices each do what one process does, stop together, and refuse to start unlike."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gw_jax.train import run, state
from gw_jax.train.metrics import read_metrics
from gw_jax.train.throughput import is_timing

SCRIPT = pathlib.Path(__file__).with_name("several_hosts.py")
CHANGES = {
    "dtype": "float64",
    "data.flip": True,
    "data.crop": True,
    "data.image_size": 14,
    "data.eval_resize": 16,
    "model.batch_norm_group_size": 2,
    # Stages of more than one pixel, and small steps: what is compared is the arithmetic, not how a run amplifies rounding.
    "model.stem": "small",
    "optimizer.learning_rate": 0.0005,
    "log.every_steps": 1,
    "log.plot": False,
    "log.tensorboard": False,
    "num_epochs": 2,
}


def start(workdir, *changes):
    """Starts the two processes; ``changes`` are those of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = [
        [f"{path}={json.dumps(value)}" for path, value in {**CHANGES, **own}.items()] for own in (changes or ({}, {}))
    ]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), "2", str(index), "2", str(workdir), *changes[index]],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]


def end(processes):
    """Waits for the processes; gives their exit codes and what they said."""
    said = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], said


def results(workdir):
    return [{name: value for name, value in line.items() if not is_timing(name)} for line in read_metrics(workdir)]


def run_here(config, workdir, num_devices, monkeypatch):
    """The same run in this process on ``num_devices`` devices."""
    with monkeypatch.context() as patch, jax.enable_x64(True):
        patch.setattr("gw_jax.train.setup.make_mesh", lambda devices: state.make_mesh(jax.devices()[:num_devices]))
        run(config, workdir)
    return results(workdir)


def assert_same_run(lines, expected):
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            if name in ("step", "epoch", "eval/top1", "eval/top5", "eval/count", "train/top1"):
                assert line[name] == value
            else:
                np.testing.assert_allclose(line[name], value, rtol=1e-9)


@pytest.mark.slow
def test_two_hosts_train_stop_and_go_on_like_one(shapes, config, set_field, tmp_path, monkeypatch):
    for path, value in CHANGES.items():
        set_field(config, path, value)
    expected = run_here(config, tmp_path / "one", 1, monkeypatch)
    assert [line["eval/count"] for line in expected if "eval/count" in line] == [50, 50]
    assert len([line for line in expected if "train/loss" in line]) == 20
    for num_devices in (2, 4):
        assert_same_run(run_here(config, tmp_path / f"on{num_devices}", num_devices, monkeypatch), expected)

    # Only the second host is told to stop; both save the same step.
    workdir = tmp_path / "two_hosts"
    processes = start(workdir)
    while all(process.poll() is None for process in processes) and len(read_metrics(workdir)) < 3:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = end(processes)
    assert codes == [0, 0], said
    assert "Stopped by SIGTERM after step" in said[0]
    stopped_at = int(said[0].split("after step ")[1].split(";")[0])
    assert 3 <= stopped_at < 20
    assert_same_run(results(workdir), expected[: len(results(workdir))])
    codes, said = end(start(workdir))
    assert codes == [0, 0], said
    assert f"Going on from step {stopped_at} of 20" in said[0]
    assert "4 cpu device(s) of 2 hosts" in said[0]
    assert_same_run(results(workdir), expected)


@pytest.mark.slow
def test_a_run_of_four_devices_goes_on_with_one_and_with_two_hosts(shapes, config, set_field, tmp_path, monkeypatch):
    for path, value in CHANGES.items():
        set_field(config, path, value)
    config.num_epochs = 1
    config.checkpoint.every_steps = 5
    expected = run_here(config, tmp_path / "four", 4, monkeypatch)
    for name in ("one", "two"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text((tmp_path / "four" / "config.json").read_text())
        subprocess.run(
            ["cp", "-r", str(tmp_path / "four" / "checkpoints" / "5"), str(tmp_path / name / "checkpoints" / "5")],
            check=True,
        )
    after = [line for line in expected if line["step"] > 5]
    assert len(after) == 6
    assert_same_run(run_here(config, tmp_path / "one", 1, monkeypatch), after)
    codes, said = end(start(tmp_path / "two", *[{"num_epochs": 1, "checkpoint.every_steps": 5}] * 2))
    assert codes == [0, 0], said
    assert "Going on from step 5 of 10" in said[0]
    assert_same_run(results(tmp_path / "two"), after)


def test_hosts_with_different_configurations_are_refused(tmp_path):
    codes, said = end(start(tmp_path / "run", {}, {"num_epochs": 3}))
    assert codes == [1, 1]
    for message in said:
        assert "error: The hosts were not started alike: num_epochs is 2 in process 0" in message
        assert "and 3 in process 1" in message
    assert not (tmp_path / "run").exists()
