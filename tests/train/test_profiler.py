"""The window of profiled steps. JAX's profiler is replaced: test_command_line.py records for real."""

import pytest

from gw_jax.train.config import LogConfig
from gw_jax.train.profiler import Profiler


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda directory: found.append(f"start {directory}"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: found.append("stop"))
    return found


def take_steps(profiler, first, count, calls):
    for step in range(first, first + count):
        profiler.before(step)
        calls.append(step + 1)
        profiler.after(step + 1, {})


def test_the_steps_of_the_window_are_recorded(tmp_path, calls, capsys):
    profiler = Profiler(tmp_path, LogConfig(profile_step=3, profile_steps=2))
    take_steps(profiler, 1, 6, calls)
    profiler.close()
    assert calls == [2, 3, f"start {tmp_path / 'profile'}", 4, 5, "stop", 6, 7]
    assert capsys.readouterr().err == ""


def test_a_run_that_ends_in_the_window_stops_the_recording(tmp_path, calls):
    profiler = Profiler(tmp_path, LogConfig(profile_step=1, profile_steps=9))
    take_steps(profiler, 0, 3, calls)
    profiler.close()
    profiler.close()
    assert calls[-2:] == [3, "stop"]


def test_no_window_records_nothing(tmp_path, calls, capsys):
    profiler = Profiler(tmp_path, LogConfig())
    take_steps(profiler, 0, 3, calls)
    profiler.close()
    assert calls == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_window_that_is_not_reached_is_named(tmp_path, calls, capsys):
    profiler = Profiler(tmp_path, LogConfig(profile_step=3))
    take_steps(profiler, 5, 2, calls)
    profiler.close()
    assert calls == [6, 7]
    assert "warning: no steps were profiled: config.log.profile_step=3 is not among the steps" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["start_trace", "stop_trace"])
def test_a_profile_that_fails_does_not_end_the_run(tmp_path, calls, monkeypatch, capsys, name):
    def fail(*_):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(f"jax.profiler.{name}", fail)
    profiler = Profiler(tmp_path, LogConfig(profile_step=1, profile_steps=1))
    take_steps(profiler, 0, 3, calls)
    profiler.close()
    assert "No space left on device" in capsys.readouterr().err
