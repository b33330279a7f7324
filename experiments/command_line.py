"""The command line that all experiments share."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from experiments.results import DIRECTORY, Recorder
from experiments.settings import GRID_SEED, LEARNING_RATES, QUICK, Length
from experiments.training import DECAY_AFTER, DECAY_FACTOR


class Options(NamedTuple):
    """What the command line of an experiment says."""

    quick: bool
    length: Length
    recorder: Recorder


def parse(
    name: str,
    description: str,
    arguments: Sequence[str] | None,
    *,
    steps: int,
    rates: tuple[float, ...] = LEARNING_RATES,
    **facts: object,
) -> Options:
    """Parses ``--quick``, ``--seeds`` and ``--out`` of the experiment ``name``.

    Args:
        name: the module and the file of its result.
        description: the text of ``--help``.
        arguments: the command line; None for that of the process.
        steps: of each run, without ``--quick``.
        rates: the grid of learning rates.
        facts: more entries of the result.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of a few cases: shows that the code runs")
    parser.add_argument("--seeds", type=int, default=None, help="reported runs of each case (default 5, 2 with --quick)")
    parser.add_argument("--out", type=pathlib.Path, help="directory of the result (needed with --quick)")
    args = parser.parse_args(arguments)
    if args.quick and args.out is None:
        parser.error("--quick needs --out=DIRECTORY: its result must not replace the measured one.")
    length = QUICK if args.quick else Length(steps, 5, rates)
    if args.seeds is not None:
        if not 1 <= args.seeds <= GRID_SEED:
            parser.error(f"--seeds={args.seeds}; choose 1 to {GRID_SEED}: seed {GRID_SEED} chooses the learning rate.")
        length = Length(length.steps, args.seeds, length.rates)
    given = ["--quick"] * args.quick + [f"--seeds={args.seeds}"] * (args.seeds is not None)
    command = " ".join(["python -m", f"experiments.{name}", *given])
    recorder = Recorder(
        name,
        command,
        args.out or DIRECTORY,
        steps=length.steps,
        seeds=length.reported_seeds,
        grid_seed=GRID_SEED,
        rates=list(length.rates),
        decay={"after": DECAY_AFTER, "factor": DECAY_FACTOR},
        **facts,
    )
    return Options(args.quick, length, recorder)
