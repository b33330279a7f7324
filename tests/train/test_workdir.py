"""A work directory has one owner, and only one process trains in it."""

import copy
import dataclasses
import fcntl
import json
import os
import pathlib
import subprocess
import sys

import pytest

import gw_jax
from gw_jax.classification import ClassificationConfig
from gw_jax.errors import ConfigError
from gw_jax.train import run
from gw_jax.train.config_fields import flatten, set_field
from gw_jax.train.workdir import (
    check_local_path,
    check_same_run,
    claim_workdir,
    config_from_stored,
    may_differ,
    stored_config,
    write_or_warn,
)
from gw_jax.train.workdir_lock import LOCK_FILE, WorkdirLock
from tests.helpers import toy

FIELDS = sorted(flatten(ClassificationConfig()))
# Written out: a field that is added to the configuration is in neither, so it must not change.
MAY_CHANGE_FIELDS = {
    "mode",
    "data.data_dir",
    "data.num_threads",
    "data.num_workers",
    "data.max_broken",
    *(name for name in FIELDS if name.split(".")[0] in ("checkpoint", "distributed", "log")),
}
EVALUATION_FIELDS = {
    "data.name",
    "data.allow_partial",
    "data.eval_name",
    "data.eval_batch_size",
    "data.eval_resize",
    "dtype",
}


def another(value):
    """A value that differs from ``value``."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, "x"]
    return "another" if value != "another" else "x"


@pytest.fixture
def default():
    return ClassificationConfig()


@pytest.fixture
def workdir(tmp_path, default):
    claim_workdir(tmp_path / "run", default)
    return tmp_path / "run"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_run_is_compared(workdir, default, name):
    set_field(default, name, another(flatten(default)[name]))
    before = (workdir / "config.json").read_bytes()
    if name in MAY_CHANGE_FIELDS:
        default.mode = "train"
        assert check_same_run(workdir, default)
        claim_workdir(workdir, default)
    else:
        with pytest.raises(ConfigError, match=rf"config\.{name} is .* there and .* now"):
            claim_workdir(workdir, default)
        assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("mode", ["evaluate", "export"])
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_that_is_given_to_evaluate_or_export_is_compared(workdir, default, name, mode):
    stored = stored_config(workdir)
    other = flatten(default)[name] if name == "mode" else another(flatten(default)[name])
    set_field(default, name, other)
    default.mode = mode
    free = MAY_CHANGE_FIELDS | (EVALUATION_FIELDS if mode == "evaluate" else set())
    if name in free:
        assert flatten(config_from_stored(workdir, stored, default, {name})) == flatten(default)
    else:
        with pytest.raises(ConfigError, match=rf"config\.{name} is .* there and .* now"):
            config_from_stored(workdir, stored, default, {name})


def test_names_that_may_differ_are_whole_names_or_groups():
    known = set(FIELDS) | {"distributed.timeout_s"}
    config = ClassificationConfig(mode="evaluate")
    for name in (*config.MAY_CHANGE, *config.MAY_DIFFER_IN_EVALUATION):
        assert any(field.startswith(name) for field in known) if name.endswith(".") else name in known
    assert not may_differ("model.name", config)
    assert not may_differ("models", ClassificationConfig())


def test_evaluation_starts_from_the_configuration_of_the_run(workdir, default):
    trained = copy.deepcopy(default)
    trained.optimizer.learning_rate, trained.model.norm, trained.optimizer.no_decay = 0.5, "gn", ("bias$",)
    trained.data.image_size = 32
    claim_workdir(workdir.parent / "other", trained)
    default.mode, default.data.eval_name = "evaluate", "imagenet_v2"
    found = config_from_stored(
        workdir, stored_config(workdir.parent / "other"), default, frozenset({"mode", "data.eval_name"})
    )
    expected = copy.deepcopy(trained)
    expected.mode, expected.data.eval_name = "evaluate", "imagenet_v2"
    assert found == expected
    assert default.model.norm == "gw"  # Not changed.


def test_from_python_every_field_counts_as_given(workdir, default):
    default.mode, default.model.norm = "evaluate", "gn"
    with pytest.raises(ConfigError, match=r"config\.model\.norm is 'gw' there and 'gn' now"):
        config_from_stored(workdir, stored_config(workdir), default)


def test_fields_newer_than_the_run_had_their_defaults(workdir, default):
    stored = stored_config(workdir)
    del stored["model.dropout"]
    (workdir / "config.json").write_text(json.dumps({"config": stored}))
    assert check_same_run(workdir, default)
    default.mode = "export"
    assert config_from_stored(workdir, stored, default, {"model.dropout"}).model.dropout == 0.0
    default.mode, default.model.dropout = "train", 0.5
    with pytest.raises(ConfigError, match=r"model\.dropout is 0\.0 there"):
        check_same_run(workdir, default)


def test_a_run_of_another_task_is_named(workdir, default):
    stored = stored_config(workdir) | {"detector.anchors": 9}
    with pytest.raises(ConfigError, match=r"a field config.detector.anchors, which a ClassificationConfig does not have"):
        config_from_stored(workdir, stored, default, frozenset())


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '{"config": null}', '{"config": []}', "{}", "[" * 100_000])
def test_a_damaged_config_is_named(workdir, default, content):
    (workdir / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read as the configuration of a run"):
        check_same_run(workdir, default)


def test_checkpoints_without_a_config_are_refused(workdir, default):
    (workdir / "config.json").unlink()
    assert not check_same_run(workdir, default)
    for item in ("state", "progress"):
        (workdir / "checkpoints" / "7" / item).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds checkpoints but no config\.json"):
        check_same_run(workdir, default)


def test_a_directory_without_complete_checkpoints_is_unclaimed(tmp_path, default):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "7").touch()
    (tmp_path / "checkpoints" / "8").mkdir()
    assert not check_same_run(tmp_path, default)


@pytest.mark.parametrize("name", ["", "checkpoints", "tensorboard", "profile"])
def test_a_file_in_the_place_of_a_directory_is_named(tmp_path, default, name):
    path = tmp_path / "run" / name if name else tmp_path / "run"
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        check_same_run(tmp_path / "run", default)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluation.json"])
def test_a_directory_in_the_place_of_a_file_is_named(tmp_path, default, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="is a directory; a run needs a file"):
        check_same_run(tmp_path, default)


@pytest.mark.parametrize("path", ["gs://bucket/x", "s3://bucket/x", "hdfs://a/b", "file:///tmp/x", "gs:/bucket/x"])
def test_urls_are_no_local_paths(path):
    with pytest.raises(ConfigError, match=r"--workdir=.* is a URL, and only local paths are supported"):
        check_local_path(path, "--workdir")


def test_local_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_local_path("~/x", "--workdir") == tmp_path / "x"
    for path in ("runs/a:b", "c:", "/a/b", "runs/x:y/z"):
        assert str(check_local_path(path, "--workdir")) == path
    with pytest.raises(ConfigError, match="--workdir is empty"):
        check_local_path("", "--workdir")


def test_a_result_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    write_or_warn(tmp_path / "new" / "evaluation.json", "{}")
    assert (tmp_path / "new" / "evaluation.json").read_text() == "{}"
    (tmp_path / "file").touch()
    write_or_warn(tmp_path / "file" / "evaluation.json", "{}")
    assert "evaluation.json cannot be written: " in capsys.readouterr().err


def test_evaluation_needs_no_flags_of_the_training_command(finished, config):
    workdir, result = finished
    command_line = toy.ToyConfig(mode="evaluate")
    command_line.checkpoint.evaluate = "last"
    assert command_line.optimizer != config.optimizer
    given = frozenset({"mode", "checkpoint.evaluate"})
    assert run(command_line, workdir, given=given).metrics == result.metrics
    with pytest.raises(ConfigError, match=r"config\.optimizer\.learning_rate is .* there and .* now"):
        run(command_line, workdir, given=given | {"optimizer.learning_rate"})


def test_runs_in_a_bucket_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is a URL"):
        run(toy.make_config(), "gs://bucket/run")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_one_directory_is_refused(config, tmp_path):
    with WorkdirLock(tmp_path / "run"), pytest.raises(ConfigError, match="is in use by another run"):
        run(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


# The lock.

# Locks and releases as the lines of its standard input say. JAX, whose import takes seconds, stays out.
SCRIPT = """
import pathlib, sys, types
root = pathlib.Path(sys.argv[1])
for name, path in (("gw_jax", root), ("gw_jax.train", root / "train")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(path)]
from gw_jax.errors import ConfigError
from gw_jax.train.workdir_lock import WorkdirLock
lock = None
print("ready", flush=True)
for line in sys.stdin:
    if lock is not None:
        lock.__exit__()
    lock = WorkdirLock(pathlib.Path(line.strip()))
    try:
        lock.__enter__()
        print("locked", flush=True)
    except ConfigError as error:
        lock = None
        print("refused", error, flush=True)
"""


@pytest.fixture
def two_processes():
    """Two processes that are ready to lock."""
    command = [sys.executable, "-c", SCRIPT, str(pathlib.Path(gw_jax.__file__).parent)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@dataclasses.dataclass
class Other:
    """A process of another machine, whose heartbeat changes while it lives."""

    path: os.PathLike
    alive: bool
    beats: int = 1

    def write(self):
        content = {"machine": "another", "host": "far", "pid": 7, "nonce": "n", "heartbeat": self.beats}
        with open(self.path, "w") as file:
            json.dump(content, file)

    def sleep(self, seconds):
        if self.alive:
            self.beats += 1
            self.write()


def test_the_lock_is_held_and_released(tmp_path):
    with WorkdirLock(tmp_path / "new" / "run") as lock:
        content = json.loads((tmp_path / "new" / "run" / LOCK_FILE).read_text())
        assert content["pid"] == os.getpid()
        with (
            pytest.raises(ConfigError, match=rf"is in use by another run \(process {os.getpid()} on"),
            WorkdirLock(tmp_path / "new" / "run"),
        ):
            pass
    assert (tmp_path / "new" / "run" / LOCK_FILE).read_bytes() == b""
    with lock.__class__(tmp_path / "new" / "run"):
        pass


def test_the_lock_of_a_dead_process_of_this_machine_is_free(tmp_path, capsys):
    with WorkdirLock(tmp_path):
        left = (tmp_path / LOCK_FILE).read_bytes()
    (tmp_path / LOCK_FILE).write_bytes(left)  # As SIGKILL leaves it.
    with WorkdirLock(tmp_path, sleep=lambda seconds: pytest.fail("waited")):
        pass
    (tmp_path / LOCK_FILE).write_bytes(left[:20])
    with WorkdirLock(tmp_path, sleep=lambda seconds: pytest.fail("waited")):
        pass


def test_the_lock_of_a_live_process_of_another_machine_is_held(tmp_path, capsys):
    other = Other(tmp_path / LOCK_FILE, alive=True)
    other.write()
    with (
        pytest.raises(ConfigError, match=r"in use by another run \(process 7 on far\)"),
        WorkdirLock(tmp_path, sleep=other.sleep),
    ):
        pass
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "far"
    assert "names process 7 on far; waiting 30 s" in capsys.readouterr().err


def test_the_lock_of_a_dead_process_of_another_machine_expires(tmp_path):
    other = Other(tmp_path / LOCK_FILE, alive=False)
    other.write()
    waited = []
    with WorkdirLock(tmp_path, sleep=waited.append):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert sum(waited) == 30


@pytest.fixture
def no_flock(monkeypatch):
    def flock(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_flock_the_heartbeat_decides(tmp_path, no_flock):
    waited = []
    with WorkdirLock(tmp_path, sleep=waited.append):
        assert waited == [10]  # Nobody else wrote meanwhile.
        left = Other(tmp_path / LOCK_FILE, alive=True)
        with pytest.raises(ConfigError, match="in use"), WorkdirLock(tmp_path, sleep=left.sleep):
            pass


def test_without_flock_the_last_to_write_has_the_lock(tmp_path, no_flock):
    other = Other(tmp_path / LOCK_FILE, alive=True)
    with pytest.raises(ConfigError, match="process 7 on far"), WorkdirLock(tmp_path, sleep=other.sleep):
        pass


def test_the_holder_of_a_lock_writes_heartbeats(tmp_path):
    with WorkdirLock(tmp_path, heartbeat_every=0.01):
        first = json.loads((tmp_path / LOCK_FILE).read_text())["heartbeat"]
        while json.loads((tmp_path / LOCK_FILE).read_text())["heartbeat"] == first:
            pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"), WorkdirLock(tmp_path / "file" / "run"):
        pass


def test_of_two_processes_that_start_at_once_exactly_one_is_refused(tmp_path, two_processes):
    for pair in range(20):
        for process in two_processes:
            process.stdin.write(f"{tmp_path / str(pair)}\n")
        answers = sorted(process.stdout.readline().split()[0] for process in two_processes)
        assert answers == ["locked", "refused"]


def test_a_killed_process_releases_its_lock(tmp_path, two_processes):
    first, second = two_processes
    first.stdin.write(f"{tmp_path}\n")
    assert first.stdout.readline() == "locked\n"
    second.stdin.write(f"{tmp_path}\n")
    assert f"in use by another run (process {first.pid} on" in second.stdout.readline()
    first.kill()
    first.wait()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == first.pid
    second.stdin.write(f"{tmp_path}\n")
    assert second.stdout.readline() == "locked\n"
