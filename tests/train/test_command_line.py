"""``train.py`` as a user starts it: a process of its own, on the real digits."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gw_jax.errors import ConfigError
from gw_jax.train import TrainConfig, command_line
from gw_jax.train.config_fields import flatten, is_optional

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


CONFIGS = """
import dataclasses
from gw_jax.train import TrainConfig

def get_config(argument="7"):
    return TrainConfig(seed=int(argument), init_from="model")
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIGS)
    return path


def parse(*arguments):
    return command_line.parse(["train.py", *map(str, arguments)], ROOT / "configs" / "quickstart.py")


def test_fields_of_the_command_line_override_those_of_the_file(config_file):
    line = parse(
        f"--config={config_file}:3",
        "--config.optimizer.learning_rate=0.5",
        "--config.optimizer.no_decay=('scale$','bias$')",
        "--config.data.flip",
        "--noconfig.model.last_norm",
        "--config.num_epochs",
        5,
        "--coordinator=host:1",
        "--num_processes=2",
        "--process_id=1",
    )
    assert line.workdir == "runs/mine"
    assert (line.coordinator, line.num_processes, line.process_id) == ("host:1", 2, 1)
    assert line.given == {
        "optimizer.learning_rate",
        "optimizer.no_decay",
        "data.flip",
        "model.last_norm",
        "num_epochs",
    }
    expected = TrainConfig(seed=3, init_from="model", num_epochs=5)
    expected.optimizer.learning_rate, expected.optimizer.no_decay = 0.5, ("scale$", "bias$")
    expected.data.flip = True
    assert line.config == expected


def test_the_config_file_may_stand_anywhere(config_file):
    line = parse("--config.seed=9", "--workdir=w", "--config", config_file)
    assert (line.config.seed, line.config.init_from, line.workdir) == (9, "model", "w")
    assert parse().workdir == "runs/quickstart"


@pytest.mark.parametrize("name", [name for name in flatten(TrainConfig()) if is_optional(TrainConfig(), name)])
@pytest.mark.parametrize("value", [["=None"], ["=none"], ["", "None"]])
def test_none_unsets_every_optional_field(config_file, name, value):
    flag = [f"--config.{name}{value[0]}", *value[1:]]
    line = parse(f"--config={config_file}", *flag, "--config.seed=1")
    assert flatten(line.config)[name] is None
    assert line.given == {name, "seed"}
    last = parse(f"--config={config_file}", *flag, f"--config.{name}=1")
    assert str(flatten(last.config)[name]) in ("1", "1.0", "True")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimiser.learning_rate=1"], "config field='optimiser' is not known; .* Did you mean 'optimizer'"),
        (["--config.optimizer.learningrate=1"], "Did you mean 'optimizer.learning_rate'"),
        (["--noconfig.data.flap"], "config field='data.flap' is not known"),
        (["--config.optimizer=1"], "config.optimizer is a group of fields"),
        (["--config.num_epochs=ten"], "invalid literal for int"),
        (["--config.num_epochs=None"], "invalid literal for int"),
        (["--config.data.flip=perhaps"], "perhaps"),
        (["--config.init_from="], "--config.init_from is empty; give a value, or None"),
        (["--config.num_epochs"], "num_epochs"),
        (["--workdirectory=x"], "Unknown command line flag 'workdirectory'"),
        (["--workdir="], "--workdir is empty"),
        (["--process_id=one"], "process_id"),
        (["--config=configs/nothing.py"], r"There is no config file 'configs/nothing\.py'. The project's own are configs/"),
        (["--config", "configs/nothing.py"], r"There is no config file 'configs/nothing\.py'"),
        (["--config"], "--config needs a file"),
        (["--config="], "There is no config file ''"),
        (["--config=configs"], "There is no config file 'configs'"),
        (["train"], r"Unexpected arguments \['train'\]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nothing_of_that_name", r"ModuleNotFoundError in line 1: No module named 'nothing_of_that_name'"),
        ("def get_config(:", r"SyntaxError: .*line 1"),
        ("x = 1", r"has no function get_config\(\)"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError in line 2: division by zero"),
        ("def get_config():\n    return {}", r"get_config\(\) returned a dict; it must return"),
        ("def get_config():\n    pass", r"get_config\(\) returned a NoneType"),
        ("import sys\nsys.exit(3)", "SystemExit in line 2: 3"),
        ("def get_config(a, b):\n    pass", "TypeError.*missing 2 required positional arguments"),
        ("\0", "cannot be loaded"),
    ],
)
def test_a_config_file_that_cannot_be_loaded_is_one_line(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        parse(f"--config={tmp_path / 'mine.py'}")
    assert "\n" not in str(caught.value)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"its name must end in \.py"):
        parse(f"--config={tmp_path / 'mine.txt'}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.norm=batch"], "config.model.norm='batch' is not known"),
        (["--config.data.name=mnist5"], "No data set is called 'mnist5'"),
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
