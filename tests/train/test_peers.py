"""Processes that meet and watch each other: gathering, lost, silent, missing and misnumbered ones."""

import contextlib
import json
import socket
import threading
import time

import pytest

from gw_jax.errors import ConfigError, TrainingError
from gw_jax.train.peers import Peers
from gw_jax.train.relay import dial
from gw_jax.train.rendezvous import meet

# Long enough that no loaded machine needs longer; what is expected to happen ends every wait at once.
LONG = 60.0


pytestmark = pytest.mark.usefixtures("exits")


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
