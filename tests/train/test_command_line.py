"""``train.py`` as a user starts it: a process of its own, on the real digits."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gw_jax.classification import ClassificationConfig
from gw_jax.errors import ConfigError
from gw_jax.train import command_line
from gw_jax.train.config_fields import flatten, is_optional

ROOT = pathlib.Path(__file__).parents[2]
OPTIONAL = [name for name in flatten(ClassificationConfig()) if is_optional(ClassificationConfig(), name)]
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
    for name in flatten(ClassificationConfig()):
        assert f"--config.{name}=" in result.stdout


def test_ctrl_c_saves_and_exits_with_130(tmp_path, data_dir):
    code, _, errors = kill_at(tmp_path / "run", data_dir, 3, signal.SIGINT, *SMALL)
    assert code == 130
    assert "Stopped by SIGINT after step" in errors
    step = errors.split("after step ")[1].split(";")[0]
    assert (tmp_path / "run" / "checkpoints" / step / "state").is_dir()


CONFIGS = """
from gw_jax.classification import ClassificationConfig

def get_config(argument="7"):
    return ClassificationConfig(seed=int(argument), init_from="model")
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
    expected = ClassificationConfig(seed=3, init_from="model", num_epochs=5)
    expected.optimizer.learning_rate, expected.optimizer.no_decay = 0.5, ("scale$", "bias$")
    expected.data.flip = True
    assert line.config == expected


def test_the_config_file_may_stand_anywhere(config_file):
    line = parse("--config.seed=9", "--workdir=w", "--config", config_file)
    assert (line.config.seed, line.config.init_from, line.workdir) == (9, "model", "w")
    assert parse().workdir == "runs/quickstart"


@pytest.mark.parametrize(
    "name", [name for name in flatten(ClassificationConfig()) if is_optional(ClassificationConfig(), name)]
)
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
        (["--config.optimiser.learning_rate=1"], "config has no field 'optimiser'; .* Did you mean 'optimizer'"),
        (["--config.optimizer.learningrate=1"], "Did you mean 'learning_rate'"),
        (["--noconfig.data.flap"], "config.data has no field 'flap'"),
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
        (["--config.data.name=mnist5"], "data set='mnist5' is not known"),
        (["--config.mode=evaluate"], "holds no run to evaluate"),
        (
            ["--config.distributed.timeout_s=1", "--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1"],
            "Process 1 could not reach process 0 at --coordinator=127.0.0.1:9 within 1 s (Connection refused)",
        ),
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


@pytest.mark.slow
def test_a_run_whose_output_is_closed_goes_to_its_end_and_profiles_a_window(tmp_path, data_dir):
    """Output closed as by a pipe to head, or with the terminal.

    The profiler needs a process of its own: it crashes where libtpu is loaded to compile for TPUs that are not there.
    """
    window = ["--config.log.profile_step=4", "--config.log.profile_steps=2"]
    process = subprocess.Popen(
        command(tmp_path / "run", data_dir, *SMALL, "--config.num_epochs=1", *window),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 0
    assert '"eval/count"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for the moment of the imports")
def test_ctrl_c_during_the_imports_ends_cleanly(tmp_path, data_dir):
    process = subprocess.Popen(
        command(tmp_path / "run", data_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    # The interpreter has started, the imports of JAX have not ended.
    while process.poll() is None and "jaxlib" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "Interrupted.\n"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB."""
    (tmp_path / "disk").mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path / "disk")], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_an_exit_code(small_disk, data_dir):
    result = train(small_disk / "run", data_dir, *SMALL, "--config.num_epochs=50", "--config.checkpoint.keep_last=99")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("Training for", "epoch "))]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "The same command" in lines[0] or "the same command" in lines[0]
    saved = sorted(int(path.name) for path in (small_disk / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert saved
    assert saved[0] == 4
