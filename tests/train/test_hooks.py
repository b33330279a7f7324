"""The calls that a logger of the user's gets."""

import json
import signal

import pytest

from gw_jax.train import Hooks, run
from gw_jax.train.config_fields import flatten
from tests.helpers.runs import results, stop_at


class Recorder(Hooks):
    """Records calls; stops or fails at a step."""

    def __init__(self, at=None, action=None):
        self.calls, self.logged, self._at, self._action = [], [], at, action

    def before_training(self, trainer, config):
        self.calls.append(("before", trainer.step))
        self.config = config

    def after_step(self, trainer):
        if trainer.step == self._at:
            self._action(trainer)

    def after_log(self, trainer, values):
        self.logged.append((trainer.step, values))

    def after_training(self, trainer, result):
        self.calls.append(("after", trainer.step))
        self.result = result


def test_a_logger_gets_config_lines_and_result(config, tmp_path):
    config.num_epochs = 1
    hooks = Recorder()
    result = run(config, tmp_path / "run", hooks=hooks)
    steps = hooks.logged[-1][0]
    assert hooks.calls == [("before", 0), ("after", steps)]
    assert hooks.config == flatten(config)
    assert json.loads(json.dumps(hooks.config)) == hooks.config
    assert hooks.result is result
    written = results(tmp_path / "run")
    assert [step for step, _ in hooks.logged] == [line["step"] for line in written]
    for (_, values), line in zip(hooks.logged, written, strict=True):
        assert {name: values[name] for name in line if "/" in name} == {k: v for k, v in line.items() if "/" in k}


def test_a_run_that_stops_or_fails_ends_the_logger_too(config, tmp_path):
    hooks = Recorder(4, lambda trainer: stop_at(4).after_step(trainer))
    run(config, tmp_path / "run", hooks=hooks)
    assert hooks.result.stopped_by == signal.SIGTERM
    (_, stopped) = hooks.calls[-1]

    def fail(trainer):
        raise ZeroDivisionError

    hooks = Recorder(stopped + 1, fail)
    with pytest.raises(ZeroDivisionError):
        run(config, tmp_path / "run", hooks=hooks)
    assert hooks.calls == [("before", stopped), ("after", stopped + 1)]
    assert hooks.result is None
