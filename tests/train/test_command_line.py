"""``train.py`` as a user starts it: a process of its own, on the real digits."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gw_jax.train import TrainConfig
from gw_jax.train.config_fields import flatten

ROOT = pathlib.Path(__file__).parents[2]
# 2 epochs of 10 steps on the digits of the quickstart, with a network that takes a fraction of its time.
SMALL = [
    "--config.num_epochs=2",
    "--config.data.batch_size=400",
    "--config.model.name=mlp",
    "--config.model.width=32",
    "--config.model.norm_options.num_groups=4",
    "--config.log.every_steps=3",
    "--config.checkpoint.every_steps=4",
]


def command(workdir, data_dir, *arguments):
    return [
        sys.executable,
        str(ROOT / "train.py"),
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        *arguments,
    ]


def environment(**extra):
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **quick, **extra}


def train(workdir, data_dir, *arguments):
    return subprocess.run(
        command(workdir, data_dir, *arguments),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd=workdir.parent,
    )


def kill_at(workdir, data_dir, step, number, *arguments):
    """Starts a run and sends ``number`` when ``metrics.jsonl`` shows ``step``; returns the ended process."""
    process = subprocess.Popen(
        command(workdir, data_dir, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and any(f'"step": {s},' in path.read_text() for s in range(step, 21)):
            process.send_signal(number)
            break
        time.sleep(0.02)
    output, errors = process.communicate()
    return process.returncode, output, errors


def test_help_lists_every_field(tmp_path):
    result = train(tmp_path / "run", "unused", "--help")
    assert result.returncode == 0
    for name in flatten(TrainConfig()):
        assert f"--config.{name}=" in result.stdout


def test_ctrl_c_saves_and_exits_with_130(tmp_path, data_dir):
    code, _, errors = kill_at(tmp_path / "run", data_dir, 3, signal.SIGINT, *SMALL)
    assert code == 130
    assert "Stopped by SIGINT after step" in errors
    step = errors.split("after step ")[1].split(";")[0]
    assert (tmp_path / "run" / "checkpoints" / step / "state").is_dir()


# In a process of its own: where libtpu is loaded to compile for TPUs that are not there, the profiler crashes.
def test_a_window_of_steps_is_profiled(tmp_path, data_dir):
    window = ["--config.log.profile_step=4", "--config.log.profile_steps=2"]
    result = train(tmp_path / "run", data_dir, *SMALL, "--config.num_epochs=1", *window)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimiser.learning_rate=1"], "config has no field 'optimiser'"),
        (["--config.optimizer.learningrate=1"], "Did you mean --config.optimizer.learning_rate?"),
        (["--config.num_epochs=ten"], "invalid literal for int"),
        (["--workdirectory=x"], "Unknown command line flag 'workdirectory'"),
        (["--config=configs/nothing.py"], "There is no config file 'configs/nothing.py'. The project's own are configs/"),
        (["train"], "Unexpected arguments ['train']"),
        (["--config.model.norm=batch"], "config.model.norm='batch' is not known"),
        (["--config.data.name=mnist5"], "No data set is called 'mnist5'"),
        (["--config.data.name=cifar10"], "'cifar10' is not prepared"),
        (["--config.mode=evaluate"], "holds no run to evaluate"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_an_exit_code(tmp_path, data_dir, arguments, message):
    result = train(tmp_path / "run", data_dir, *arguments)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
