"""``train.py`` that kills itself: ``python -m tests.train.killed_run MOMENTS [FLAG ...]``.

MOMENTS are separated by commas, or "none"; N counts from 1 and from the start of this process:

    import:MODULE               before the module is imported
    before:MODULE:FUNCTION      when the function is called first
    after:MODULE:FUNCTION       when it returns first
    step:N                      before the N-th step
    line:N                      after the N-th line of metrics.jsonl
    save:N:MS                   MS milliseconds after the N-th save has begun, so in its background
    evaluation:N                before the N-th evaluation
    batch:N                     in an evaluation, before the results of the N-th batch are added
    workers:N                   after the N-th step, but only the reading workers die
"""

import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
    # The signal may be delivered to another thread; nothing more must happen in this one.
    time.sleep(3600)


class Countdown:
    """Calls ``action`` with its arguments when it is called for the ``number``-th time."""

    def __init__(self, number, action):
        self.left, self.action = int(number), action

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0:
            self.action(*arguments)


class ImportKill:
    """An entry of ``sys.meta_path``, which Python asks for every module that it imports."""

    def __init__(self, module):
        self.module = module

    def find_spec(self, name, *_):
        if name == self.module:
            die()


def kill_workers(*_):
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    print(f"KILLED {len(workers)} WORKERS", file=sys.stderr, flush=True)


def start_timer(milliseconds, *_):
    timer = threading.Timer(int(milliseconds) / 1000, die)
    timer.daemon = True
    timer.start()


def count_batches(count, trainer, *_):
    """Calls ``count`` before each batch of an evaluation."""
    evaluator = type(trainer.experiment.task.evaluator())
    original = evaluator.add

    def add(self, outputs):
        count()
        original(self, outputs)

    evaluator.add = add


def replace_function(module, function, when):
    """Replaces ``function``, a name in ``module``, by one that kills this process ("before" or "after" its work)."""
    owner = importlib.import_module(module)
    original = getattr(owner, function)

    @functools.wraps(original)
    def replacement(*arguments, **options):
        if when == "before":
            die()
        result = original(*arguments, **options)
        die()
        return result

    setattr(owner, function, replacement)


def make_hooks(moments):
    """The hooks of a run, with a method for each of the moments in the loop."""
    from gw_jax.train import Hooks

    hooks = Hooks()
    for name, *arguments in moments:
        if name in ("before", "after"):
            replace_function(*arguments, when=name)
        elif name == "step":
            hooks.before_step = Countdown(arguments[0], die)
        elif name == "workers":
            # A "step" may follow, which has the other method.
            hooks.after_step = Countdown(arguments[0], kill_workers)
        elif name == "line":
            hooks.after_log = Countdown(arguments[0], die)
        elif name == "save":
            number, milliseconds = arguments
            hooks.before_save = Countdown(number, functools.partial(start_timer, milliseconds))
        elif name == "evaluation":
            hooks.before_evaluation = Countdown(arguments[0], die)
        elif name == "batch":
            batches = Countdown(arguments[0], die)
            hooks.before_evaluation = Countdown(1, functools.partial(count_batches, batches))
        elif name != "import":
            raise ValueError(f"unknown moment {name}")
    return hooks


def main(moments, *flags):
    moments = [] if moments == "none" else [moment.split(":") for moment in moments.split(",")]
    sys.meta_path[:0] = [ImportKill(module) for name, module, *_ in moments if name == "import"]
    import gw_jax.train
    import train

    gw_jax.train.run = functools.partial(gw_jax.train.run, hooks=make_hooks(moments))
    return train.main(["train.py", *flags])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
