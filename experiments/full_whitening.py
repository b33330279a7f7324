"""Accuracy at small and large batch sizes of DBN and IterNorm that whiten all 256 channels of a layer at once.

    python -m experiments.full_whitening [--quick] [--seeds=5] [--out=DIRECTORY]

A step costs some 50 times as much as with blocks of 16 channels, so there are fewer batch sizes than in
``experiments.batch_sizes`` and fewer learning rates; the number of steps is the same.
"""

from collections.abc import Sequence

from experiments.batch_sizes import STEPS, run
from experiments.command_line import parse
from experiments.settings import WIDTH, batch_whitening

BATCH_SIZES = (2, 256)
LEARNING_RATES = (0.03, 0.1, 0.3)
NORMS = (batch_whitening("iternorm", WIDTH), batch_whitening("dbn", WIDTH))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    options = parse("full_whitening", __doc__, arguments, steps=STEPS, rates=LEARNING_RATES)
    run(options, NORMS, BATCH_SIZES)


if __name__ == "__main__":
    main()
