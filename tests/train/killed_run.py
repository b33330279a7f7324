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
    workers:N                   before the N-th step, but only the reading workers die
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
    """Calls ``action`` when it is called for the ``number``-th time."""

    def __init__(self, number, action):
        self.left, self.action = int(number), action

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            self.action()


class ImportKill:
    """An entry of ``sys.meta_path``, which Python asks for every module that it imports."""

    def __init__(self, module):
        self.module = module

    def find_spec(self, name, *_):
        if name == self.module:
            die()


def kill_workers():
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    print(f"KILLED {len(workers)} WORKERS", file=sys.stderr, flush=True)


def start_timer(milliseconds):
    timer = threading.Timer(int(milliseconds) / 1000, die)
    timer.daemon = True
    timer.start()


def replace_function(module, function, when):
    """Makes ``function``, a name in ``module`` such as "run" or "Trainer.train", the last one that is called."""
    owner = importlib.import_module(module)
    *classes, name = function.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    @functools.wraps(original)
    def replacement(*arguments, **options):
        if when == "before":
            die()
        result = original(*arguments, **options)
        die()
        return result

    setattr(owner, name, replacement)


def make_hooks(moments):
    """The hooks of a run, with one method per moment that is found in the loop."""
    from gw_jax.train import Hooks

    hooks, evaluator_seen = Hooks(), []
    for name, *arguments in moments:
        if name in ("before", "after"):
            replace_function(*arguments, when=name)
        elif name == "step":
            hooks.before_step = Countdown(arguments[0], die)
        elif name == "workers":
            # The only one that another moment follows.
            steps = Countdown(arguments[0], kill_workers)
            hooks.after_step = steps
        elif name == "line":
            hooks.after_log = Countdown(arguments[0], die)
        elif name == "save":
            hooks.before_save = Countdown(arguments[0], functools.partial(start_timer, arguments[1]))
        elif name == "evaluation":
            hooks.before_evaluation = Countdown(arguments[0], die)
        elif name == "batch":
            added = Countdown(arguments[0], die)

            def watch(trainer, added=added):
                if not evaluator_seen:
                    kind = type(trainer.experiment.task.evaluator())
                    evaluator_seen.append(kind.add)
                    kind.add = lambda self, outputs: (added(), evaluator_seen[0](self, outputs))[1]

            hooks.before_evaluation = watch
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
