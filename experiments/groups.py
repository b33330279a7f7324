"""Accuracy of GW and GN over the number of groups, 1 to 128, in the reference's MLP of width 256.

    python -m experiments.groups [--quick] [--seeds=5] [--out=DIRECTORY]

A sample's output of a GW layer with ``g`` groups meets ``g (g + 3) / 2`` constraints, that of a GN layer ``2 g``. It has
256 values. With 128 groups GW takes the learning rate that was chosen with 64: a grid would double the time
of the experiment.
"""

from collections.abc import Sequence

from experiments.command_line import parse
from experiments.digits import load_digits
from experiments.settings import WIDTH, group_norm, group_whitening
from experiments.study import run_case
from experiments.training import Runs

STEPS, BATCH_SIZE = 400, 16
GROUPS = (1, 2, 4, 8, 16, 32, 64, 128)
WITHOUT_GRID = {("GW", 128): 64}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    options = parse("groups", __doc__, arguments, steps=STEPS, batch_size=BATCH_SIZE, width=WIDTH)
    digits = load_digits()
    for kind, make in (("GN", group_norm), ("GW", group_whitening)):
        rates: dict[int, float] = {}
        for groups in (2, 4) if options.quick else GROUPS:
            rate = rates.get(WITHOUT_GRID.get((kind, groups), 0))
            runs = Runs(make(groups).mlp, digits)
            case = run_case(runs, digits, BATCH_SIZE, options.length, rate=rate, train_members=digits.train_sample)
            rates[groups] = case["rate"]
            options.recorder.add(kind=kind, groups=groups, **case)


if __name__ == "__main__":
    main()
