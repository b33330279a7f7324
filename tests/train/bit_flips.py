"""Flips one bit of a checkpoint, resumes the run, and compares its numbers with those of an undisturbed run.

    JAX_PLATFORMS=cpu python -m tests.train.bit_flips --flips=50 --seed=0

The file is drawn first, then the byte and the bit, so that small files are hit as often as large ones. A finished run, a
stopped one, and an older checkpoint of a stopped one take turns.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import pathlib
import random
import shutil
import sys
import tempfile
import time

from gw_jax.train import run
from gw_jax.train.checkpoint import saved_steps
from tests.helpers import toy
from tests.helpers.runs import results, stop_at

# The run, and which of its checkpoints is damaged.
CASES = (("finished", -1), ("stopped", -1), ("stopped", 0))
STOPPED_AT = 17


@dataclasses.dataclass
class Report:
    """The outcome.

    Attributes:
        outcomes: how many flips had each outcome, by case.
        harmless: files in which a flip changed nothing that is used.
        failures: flips after which the run ended otherwise, or with other numbers.
    """

    outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    harmless: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)


def flip_random_bit(checkpoint, rng):
    """Flips one bit of one file below ``checkpoint``. Returns which one."""
    path = rng.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(path.read_bytes())
    byte, bit = rng.randrange(len(content)), rng.randrange(8)
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.relative_to(checkpoint)}, byte {byte}, bit {bit}"


def make_runs(directory):
    """Trains the two runs in ``directory``. Returns the result of the finished one."""
    result = run(toy.make_config(), directory / "finished")
    run(toy.make_config(), directory / "stopped", hooks=stop_at(STOPPED_AT))
    return result


def flip_repeatedly(count, seed, directory, tell=lambda text: None):
    """Makes ``count`` flips in copies of two runs in ``directory``; see :class:`Report`."""
    expected_metrics = make_runs(directory).metrics
    expected, report, rng = results(directory / "finished"), Report(), random.Random(seed)
    for number in range(count):
        name, index = CASES[number % len(CASES)]
        workdir = directory / "copy"
        shutil.copytree(directory / name, workdir)
        checkpoint = workdir / "checkpoints" / str(saved_steps(workdir)[index])
        where = f"{name}/{checkpoint.name}/{flip_random_bit(checkpoint, rng)}"
        outcome = resume(workdir, expected, expected_metrics)
        tell(f"{number + 1}: {where}: {outcome}")
        kind = outcome.split(":")[0]
        report.outcomes[f"{name}, {'newest' if index else 'older'} checkpoint: {kind}"] += 1
        if kind == "harmless":
            report.harmless.append(where)
        elif kind != "set aside":
            report.failures.append(f"{where}: {outcome}")
        shutil.rmtree(workdir)
    return report


def resume(workdir, expected, expected_metrics):
    """Resumes the damaged run: "set aside", "harmless", or what was wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            metrics = run(toy.make_config(), workdir).metrics
    except Exception as error:  # Whatever it is, it is reported.
        return f"ended: {type(error).__name__}: {error}"
    if results(workdir) != expected or metrics != expected_metrics:
        return "other numbers"
    aside = list((workdir / "checkpoints").glob("damaged-*"))
    if bool(aside) != ("is damaged" in said.getvalue()):
        return f"no word of {aside}: {said.getvalue()}"
    return "set aside" if aside else "harmless"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        report = flip_repeatedly(options.flips, options.seed, pathlib.Path(directory), lambda text: print(text, flush=True))
    for outcome, number in sorted(report.outcomes.items()):
        print(f"{number:4d}  {outcome}")
    print(f"{len(report.failures)} failures, {time.monotonic() - began:.0f} s")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
