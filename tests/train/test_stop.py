"""Signals become a stop request; several processes decide together."""

import os
import signal
import threading

import numpy as np
import pytest

from gw_jax.train.stop import StopConsensus, StopRequest


@pytest.mark.usefixtures("hangup_stops")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_stop_request_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("hangup_stops")
def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("number", "stops"), [(signal.SIGHUP, False), (signal.SIGINT, True), (signal.SIGTERM, True)])
def test_under_nohup_a_hangup_stays_ignored(number, stops):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert bool(stop) == stops
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_run_in_another_thread_has_no_handlers():
    found = []

    def enter():
        with StopRequest() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]


def test_one_process_stops_by_its_own_request():
    stop = StopRequest()
    consensus = StopConsensus(stop)
    batch = {"x": np.zeros((3, 2))}
    assert consensus.attach(batch) is batch
    assert not consensus.should_stop
    stop.signal = signal.SIGTERM
    assert consensus.should_stop


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)


def test_several_processes_stop_by_what_a_step_returned(two_processes):
    stop = StopRequest()
    consensus = StopConsensus(stop)
    stop.signal = signal.SIGTERM
    assert not consensus.should_stop  # The others have not received it.
    attached = consensus.attach({"inputs": {"deep": np.zeros((3, 2))}, "y": np.zeros(3)})
    np.testing.assert_array_equal(attached["stop"], [1, 1, 1])
    consensus.observe({"loss": 1.0})
    assert not consensus.should_stop
    consensus.observe({"stop": np.uint8(1)})
    assert consensus.should_stop


def test_a_stop_decision_is_final(two_processes):
    """The answer of a later step, or of an evaluation, does not undo it."""
    consensus = StopConsensus(None)
    consensus.observe({"stop": np.uint8(1)})
    consensus.observe({"stop": np.uint8(0)})
    assert consensus.should_stop
