"""Rendezvous, heartbeats and failures of processes. Here they are mostly threads of one process."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from gw_jax.errors import CheckpointError, ConfigError, TrainingError
from gw_jax.train import distributed
from gw_jax.train.peers import Peers
from gw_jax.train.relay import dial
from gw_jax.train.rendezvous import meet

SCRIPT = pathlib.Path(__file__).with_name("one_of_several.py")
# Long enough that no loaded machine needs longer; what is expected to happen ends every wait at once.
LONG = 60.0


@pytest.fixture(autouse=True)
def exits(monkeypatch):
    """The exit codes with which this process would have ended."""
    found = []
    monkeypatch.setattr(os, "_exit", found.append)
    return found


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def all_at_once(*functions):
    """Calls each function in a thread of its own; returns what each returned or raised."""
    results = [None] * len(functions)

    def call(index, function):
        try:
            results[index] = function()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=call, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def starter(port, count, index, timeout=LONG):
    return lambda: meet("127.0.0.1", port, count, index, timeout)


@pytest.fixture
def three(port):
    peers = all_at_once(*(starter(port, 3, index) for index in range(3)))
    assert all(isinstance(one, Peers) for one in peers)
    yield peers
    for one in peers:
        one.close()
        for connection in one.connections.values():
            connection.close()


def drop(peers):
    """Closes the connections of a process, as the system does when it is killed."""
    peers._closed = True  # The dead report nothing.
    for connection in peers.connections.values():
        with contextlib.suppress(OSError):
            connection._socket.shutdown(socket.SHUT_RDWR)


def test_values_are_gathered_in_order(three):
    for round_ in range(3):
        values = [{"process": i, "round": round_} for i in range(3)]
        calls = [
            lambda one=one, value=value: one.gather("x", value, LONG) for one, value in zip(three, values, strict=True)
        ]
        found = all_at_once(*calls)
        assert found == [values] * 3


def test_a_lost_process_is_named_by_all_others(three, exits):
    drop(three[2])
    found = all_at_once(*(lambda one=one: one.gather("x", 1, LONG) for one in three[:2]))
    for error in found:
        assert isinstance(error, TrainingError)
        assert str(error).startswith(f"Process 2 of 3 ({three[0].hosts[2]}) is lost: it was killed")


def test_a_lost_process_0_is_named(three):
    drop(three[0])
    for error in all_at_once(*(lambda one=one: one.gather("x", 1, LONG) for one in three[1:])):
        assert str(error).startswith("Process 0 of 3")


def test_a_failure_ends_processes_that_wait_elsewhere(three, exits, capsys):
    for one in three:
        one.grace = 0.01
    three[1].fail("the data are broken")
    for one in (three[0], three[2]):
        with one.changed:
            assert one.changed.wait_for(lambda one=one: one.failure, LONG)
        assert one.failure == f"Process 1 of 3 ({one.hosts[1]}) has failed: the data are broken"
    while len(exits) < 3:
        pass
    assert exits == [1, 1, 1]
    errors = capsys.readouterr().err
    assert errors.count("has failed: the data are broken. Its own log may say more. The same command") == 2
    assert "error: the data are broken\n" in errors


def test_a_process_that_ends_after_the_others_agreed_is_not_lost(three, exits):
    all_at_once(*(lambda one=one: one.gather("end", None, LONG) for one in three))
    three[2].close()
    drop(three[2])
    found = all_at_once(*(lambda one=one: one.gather("x", 1, 0.5) for one in three[:2]))
    assert all("waited" in str(error) for error in found)
    assert three[0].failure is None


def test_a_silent_process_is_lost(port):
    """It is connected, but sends nothing, as when its host has no power."""

    def silent():
        with dial("127.0.0.1", port, time.monotonic() + LONG, AssertionError) as sock:
            sock.sendall(json.dumps({"process_id": 1, "num_processes": 2, "host": "far"}).encode() + b"\n")
            while sock.recv(100):
                pass

    def watch():
        # Waits as long for the other to come, which a loaded machine may need, as for its signs of life.
        one = meet("127.0.0.1", port, 2, 0, 3.0)
        try:
            return one.gather("x", 1, LONG)
        finally:
            drop(one)

    error, _ = all_at_once(watch, silent)
    assert isinstance(error, TrainingError)
    assert str(error) == "Process 1 of 2 (far) is lost: it has given no sign of life for 3 s"


def test_processes_that_do_not_do_the_same_are_named(three):
    names = ["save", "restore", "save"]
    found = all_at_once(*(lambda one=one: one.gather(names[one.process_id], 1, LONG) for one in three))
    for error in found:
        assert "The processes do not do the same: process 0 of 3" in str(error)
        assert "at 'save', process 1 of 3" in str(error)


def test_a_process_that_does_not_come_is_named(three):
    found = all_at_once(lambda: three[0].gather("save", 1, 0.2), lambda: three[1].gather("save", 1, 0.2))
    assert "waited 0 s for each other at 'save'; process 2 of 3" in str(found[0])


def test_a_missing_process_is_named_by_those_that_came(port):
    found = all_at_once(starter(port, 3, 0, 1.0), starter(port, 3, 1, LONG))
    for error in found:
        assert isinstance(error, ConfigError)
        assert str(error).startswith("Process 2 of 3 did not come within 1 s. Start the same command on all hosts")


def test_a_missing_process_0_is_named(port):
    (error,) = all_at_once(starter(port, 2, 1, 0.5))
    assert isinstance(error, ConfigError)
    assert str(error).startswith(
        f"Process 1 could not reach process 0 at --coordinator=127.0.0.1:{port} within 0 s (Connection refused)"
    )


def test_two_processes_with_one_number_are_named(port):
    found = all_at_once(starter(port, 3, 0), starter(port, 3, 1), starter(port, 3, 1))
    refused = [error for error in found if isinstance(error, ConfigError)]
    assert len(refused) == 3
    assert all("--process_id=1 was given to two processes, on" in str(error) for error in refused)


def test_a_second_process_0_is_named(port):
    found = all_at_once(starter(port, 3, 0, 2.0), starter(port, 3, 0, 2.0))
    texts = [str(error) for error in found]
    assert any(f"Process 0 cannot listen on port {port}: Address already in use" in text for text in texts)


def test_different_numbers_of_processes_are_named(port):
    found = all_at_once(starter(port, 3, 0), starter(port, 4, 1))
    for error in found:
        assert isinstance(error, ConfigError)
        assert "--num_processes is 4 on" in str(error)
        assert "and 3 in process 0" in str(error)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[]\n", b"{}\n", b"x" * 3_000_000])
def test_something_else_at_the_coordinators_port_is_named(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(100)
                connection.sendall(answer)

        port = server.getsockname()[1]
        error, _ = all_at_once(starter(port, 2, 1), serve)
    assert isinstance(error, ConfigError)
    assert "is not process 0 of a run that starts now" in str(error)


def test_connections_from_outside_the_run_are_ignored(port):
    """Port scanners and health checks."""

    def scan():
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return

    found = all_at_once(starter(port, 2, 0), lambda: (scan(), starter(port, 2, 1)())[1])
    assert all(isinstance(one, Peers) for one in found)
    for one in found:
        one.close()
        drop(one)


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

    one = Scripted(0, 2, LONG)
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


@pytest.mark.parametrize("victim", [None, "0", "1"])
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
