"""Starts pairs of runs on one work directory: one must be refused, the other one must be undisturbed.

    JAX_PLATFORMS=cpu python -m tests.train.pairs --pairs=20

The run that gets the directory pauses after five steps until the other one has ended. So they overlap, however long each of
them takes to start.
"""

import argparse
import pathlib
import signal
import sys
import tempfile
import time

from tests.helpers import host
from tests.helpers.runs import results

# Only a run that hangs takes as long, in seconds.
DEADLINE = 300


def start_run(workdir, fault="none"):
    (process,) = host.start("toy", workdir, ({},), (fault,), present=(0,))
    return process


def first_to_end(processes, number=None):
    """Waits until one of ``processes`` has ended, and sends it the signal ``number`` meanwhile; None if none ends."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for process in processes:
            if process.poll() is not None:
                return process
            if number is not None:
                process.send_signal(number)
        time.sleep(0.05)
    return None


def run_pair(workdir, expected):
    """Starts two runs in ``workdir``. Returns what was wrong, or an empty string."""
    pair = [start_run(workdir, "SIGSTOP@before_step@5") for _ in range(2)]
    try:
        refused = first_to_end(pair)
        if refused is None:
            return "neither was refused"
        (other,) = (process for process in pair if process is not refused)
        # Repeatedly, since it may not have reached its pause yet.
        if first_to_end([other], signal.SIGCONT) is None:
            return "the one that was not refused hangs"
        said = refused.communicate()[1]
        if refused.returncode != 1 or other.returncode != 0:
            return f"exit codes {refused.returncode} and {other.returncode}: {said}\n{other.communicate()[1]}"
        if len(said.splitlines()) != 1 or not said.startswith(
            f"error: The work directory {workdir} is in use by another run"
        ):
            return f"it was refused with other words: {said}"
        if f"process {other.pid} on" not in said:
            return f"another process is named: {said}"
        return "" if results(workdir) == expected else "the metrics are not those of a run that is alone"
    finally:
        for process in pair:
            process.kill()
            process.wait()


def run_pairs(count, directory, tell=lambda text: None):
    """Runs ``count`` pairs in ``directory``. Returns what was wrong with those that failed."""
    alone = start_run(directory / "alone")
    said = alone.communicate()[1]
    assert alone.returncode == 0, said
    failures = []
    for number in range(count):
        workdir = directory / f"pair-{number}"
        failure = run_pair(workdir, results(directory / "alone"))
        tell(f"{workdir.name}: {failure or 'one was refused, the other undisturbed'}")
        if failure:
            failures.append(f"{workdir.name}: {failure}")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        failures = run_pairs(options.pairs, pathlib.Path(directory), lambda text: print(text, flush=True))
    print(f"{options.pairs} pairs, {len(failures)} failures, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
