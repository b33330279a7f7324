"""The lock of a work directory: two runs, dead processes, other machines, file systems without flock."""

import dataclasses
import fcntl
import json
import os
import pathlib
import subprocess
import sys

import pytest

import gw_jax
from gw_jax.errors import ConfigError
from gw_jax.train.workdir_lock import LOCK_FILE, WorkdirLock

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
