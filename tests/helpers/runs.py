"""Helpers for tests that train: what a run wrote, and faults injected through its hooks."""

import os
import signal

from gw_jax.train import Hooks
from gw_jax.train.metrics import read_metrics
from gw_jax.train.throughput import is_timing


def results(workdir, after=-1):
    """The lines of ``metrics.jsonl`` past the step ``after``, without the figures that depend on the clock."""
    lines = [line for line in read_metrics(workdir) if line["step"] > after]
    return [{name: value for name, value in line.items() if not is_timing(name)} for line in lines]


def evaluations(workdir):
    """The lines of the evaluations."""
    return [line for line in results(workdir) if "eval/count" in line]


def set_field(config, path, value):
    """Sets a field by the name that the command line has for it."""
    *groups, name = path.split(".")
    for group in groups:
        config = getattr(config, group)
    setattr(config, name, value)


class KilledError(BaseException):
    """Ends a run like SIGKILL would: nothing handles it."""


class At(Hooks):
    """Calls ``action(trainer)`` once, when ``method`` of the hooks is called at ``step``."""

    def __init__(self, method, step, action):
        self._step, self._action = step, action
        setattr(self, method, self._at)

    def _at(self, trainer, *_):
        if trainer.step == self._step:
            self._step = -1
            self._action(trainer)


def stop_at(step, number=signal.SIGTERM, method="after_step"):
    """Hooks that send ``number`` to this process."""
    return At(method, step, lambda trainer: os.kill(os.getpid(), number))


def kill_at(step, method="before_step"):
    """Hooks that end the run without any notice, when earlier saves are on disk."""

    def kill(trainer):
        trainer.checkpoints.wait()
        raise KilledError

    return At(method, step, kill)
