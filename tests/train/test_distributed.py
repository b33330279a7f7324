"""Rendezvous, heartbeats and failures of processes. Here they are mostly threads of one process."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from gw_jax.errors import CheckpointError, ConfigError, TrainingError
from gw_jax.train import distributed
from gw_jax.train.peers import Peers

SCRIPT = pathlib.Path(__file__).with_name("one_of_several.py")
pytestmark = pytest.mark.usefixtures("exits")


# The functions that a run uses.


def test_a_single_process_needs_no_peers(monkeypatch):
    assert distributed.gather("x", 3) == [3]
    assert distributed.broadcast_from_main("x", 3) == 3
    assert distributed.any_process("x", True)
    assert not distributed.any_process("x", False)
    distributed.wait_for_everyone("x")
    distributed.check_same_everywhere({"a": 1})
    distributed.finish()
    with pytest.raises(SystemExit):
        distributed.leave(1, "x")
    with pytest.raises(ZeroDivisionError), distributed.reporting_failures():
        _ = 1 / 0


def as_process(monkeypatch, one):
    monkeypatch.setattr(distributed, "_peers", one)
    monkeypatch.setattr(distributed, "is_main", lambda: one.process_id == 0)


@pytest.fixture
def two_as_one(monkeypatch):
    """This process is process 0; process 1 answers as ``answers`` say."""

    class Scripted(Peers):
        answers: tuple = ()

        def gather(self, name, value, timeout):
            return [value, *(answer if answer is not ... else value for answer in self.answers)]

    one = Scripted(0, 2, 60.0)
    as_process(monkeypatch, one)
    return one


def test_hosts_that_differ_are_named(two_as_one):
    two_as_one.answers = ({"host": "b", "seed": 1, "dtype": "float32"},)
    with pytest.raises(ConfigError, match=r"seed is 0 in process 0 .* and 1 in process 1 \(b\)"):
        distributed.check_same_everywhere({"seed": 0, "dtype": "float32"})


def test_an_error_of_process_0_is_raised_everywhere(two_as_one):
    def fail():
        raise CheckpointError("it is damaged")

    two_as_one.answers = (...,)
    with pytest.raises(CheckpointError, match="it is damaged"):
        distributed.run_on_main("restore", fail)
    assert distributed.run_on_main("restore", lambda: 7) == 7


def test_an_error_caused_by_a_lost_process_names_that_process(two_as_one):
    two_as_one.failure = "Process 1 of 2 (b) is lost"
    with (
        pytest.raises(TrainingError, match=r"Process 1 of 2 \(b\) is lost\. Its own log"),
        distributed.reporting_failures(),
    ):
        raise ValueError("Gloo AllGather failed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, None), "--num_processes and --process_id missing"),
        ((None, 2, 0), "--coordinator missing"),
        (("host", 2, 0), "--coordinator='host' must be HOST:PORT"),
        (("host:port", 2, 0), "must be HOST:PORT"),
        (("host:99999", 2, 0), "must be HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2 must be at least 0 and below --num_processes=2"),
        (("host:1", 0, 0), "must be at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        distributed.initialize(*arguments)


@pytest.fixture
def cluster(monkeypatch):
    """The cluster that JAX detects."""
    from jax._src.clusters import ClusterEnv

    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "JAX_COORD")):
            monkeypatch.delenv(name)

    def find(result):
        def detect(*arguments):
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", detect)

    return find


def test_without_a_cluster_there_is_one_process(cluster, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "meet", lambda *_: pytest.fail("other processes were looked for"))
    cluster((None, None, None, None))
    distributed.initialize()
    cluster(("host:1", 1, 0, None))
    distributed.initialize()
    assert capsys.readouterr().err == ""
    cluster(RuntimeError("no metadata server"))  # A notebook with a TPU.
    distributed.initialize()
    assert "warning: JAX could not tell whether this is one of several hosts" in capsys.readouterr().err


def test_a_shell_in_an_allocation_is_one_process(cluster, monkeypatch):
    cluster(("host:1", 4, 0, None))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    distributed.initialize()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setattr(distributed, "meet", lambda *arguments: pytest.fail(f"meets {arguments}"))
    with pytest.raises(pytest.fail.Exception, match=r"meets \('host', 1, 4, 0, 60.0\)"):
        distributed.initialize()


def test_a_launcher_that_jax_does_not_know_is_named(cluster, monkeypatch):
    cluster((None, None, None, None))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="OMPI_COMM_WORLD_SIZE=4 says that this is one of several processes"):
        distributed.initialize()


# Real processes, which compute together by JAX.


@pytest.mark.parametrize("victim", [None, *(pytest.param(victim, marks=pytest.mark.slow) for victim in "01")])
def test_two_processes_of_jax(port, victim):
    arguments = [] if victim is None else [victim]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), "2", str(index), "60", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SCRIPT.parents[2])},
        )
        for index in range(2)
    ]
    said = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    if victim is None:
        assert codes == [0, 0], said
        assert all("done" in output for output, _ in said)
        return
    lost, other = int(victim), 1 - int(victim)
    assert (codes[lost], codes[other]) == (-signal.SIGKILL, 1), said
    errors = [line for line in said[other][1].splitlines() if "Gloo" not in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: Process {lost} of 2 (")
    assert "is lost: it was killed, or its host or network is down" in errors[0]
