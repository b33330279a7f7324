"""Accuracy over the batch size, 2 to 256: BN, DBN, IterNorm, GN, GW and no norm in the reference's MLP.

    python -m experiments.batch_sizes [--quick] [--seeds=5] [--out=DIRECTORY]

DBN and IterNorm are in blocks of 16 channels here; ``experiments.full_whitening`` has one block of all 256.
"""

from collections.abc import Sequence

from experiments.command_line import Options, parse
from experiments.digits import load_digits
from experiments.settings import BATCH_NORM, NO_NORM, Norm, batch_whitening, group_norm, group_whitening
from experiments.study import run_case
from experiments.training import Runs

STEPS = 400
BATCH_SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
NORMS = (
    NO_NORM, BATCH_NORM, batch_whitening("dbn", 16), batch_whitening("iternorm", 16), group_norm(16), group_whitening(16),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    options = parse("batch_sizes", __doc__, arguments, steps=STEPS)
    run(options, NORMS, (2, 16) if options.quick else BATCH_SIZES)


def run(options: Options, norms: Sequence[Norm], batch_sizes: Sequence[int]) -> None:
    """Runs each norm at each batch size."""
    digits = load_digits()
    for norm in norms:
        runs = Runs(norm.mlp, digits)
        for batch_size in batch_sizes:
            options.recorder.add(norm=norm.label, **run_case(runs, digits, batch_size, options.length))


if __name__ == "__main__":
    main()
