"""Throughput on a clock that the test moves."""

import pytest

from gw_jax.train.throughput import Throughput, is_timing


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def throughput(clock):
    return Throughput("images", clock)


def take_step(throughput, clock, seconds, waited=0.0, examples=8, at_peak=None):
    """One step as the loop takes it, finished before the next call."""
    throughput.start()
    clock.now += waited
    throughput.count(examples, waited, at_peak)
    clock.now += seconds - waited


def test_the_first_window_counts_steps_and_their_time_alike(throughput, clock):
    clock.now += 50  # Compilation.
    for _ in range(4):
        take_step(throughput, clock, 0.5)
    values = throughput.read()
    assert values == {"images_per_sec": 16.0, "step_ms": 500.0, "data_wait": 0.0}


def test_a_window_after_a_pause_is_like_the_first(throughput, clock):
    take_step(throughput, clock, 0.5)
    first = throughput.read()
    take_step(throughput, clock, 0.5)
    throughput.pause()
    clock.now += 1000  # An evaluation.
    take_step(throughput, clock, 0.5)
    assert throughput.read() == first
    clock.now += 1.5
    take_step(throughput, clock, 0.5)  # Nothing was paused: the time between belongs to training.
    assert throughput.read()["step_ms"] == 2000.0


def test_waiting_for_data_is_a_share_of_the_time(throughput, clock):
    take_step(throughput, clock, 1.0, waited=0.25)
    take_step(throughput, clock, 1.0, waited=0.75)
    assert throughput.read()["data_wait"] == 0.5


def test_model_flops_utilisation(throughput, clock):
    # Steps of two programs, such as for images of two shapes.
    take_step(throughput, clock, 0.5, at_peak=0.125)
    take_step(throughput, clock, 1.5, at_peak=0.625)
    assert throughput.read()["mfu"] == 0.375
    take_step(throughput, clock, 0.5, at_peak=0.125)
    take_step(throughput, clock, 0.5)
    assert "mfu" not in throughput.read()
    take_step(throughput, clock, 0.5, at_peak=0.125)
    assert throughput.read()["mfu"] == 0.25


def test_no_steps_give_no_throughput(throughput, clock):
    assert throughput.read() == {}
    take_step(throughput, clock, 0.5)
    throughput.read()
    clock.now += 5
    assert throughput.read() == {}


def test_counting_a_step_while_the_clock_is_stopped_is_refused(throughput):
    with pytest.raises(RuntimeError, match="before start"):
        throughput.count(8, 0.0)


def test_names_that_depend_on_the_clock():
    timing = ["train/images_per_sec", "train/tokens_per_sec", "train/step_ms", "train/data_wait", "train/mfu"]
    assert all(map(is_timing, timing))
    assert not any(map(is_timing, ["train/loss", "eval/top1", "step", "epoch", "train/grad_norm"]))
