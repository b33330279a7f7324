"""Accuracy and whitening error of GW over the number of Newton-Schulz iterations, 1 to 9, and with ZCA.

    python -m experiments.iterations [--quick] [--seeds=5] [--out=DIRECTORY]

With 8 groups, each a variable with 32 observations, so that the covariances have full rank. The whitening error is
``|C - I|_F / sqrt(g)`` of a sample's covariance ``C`` after the norm: the median over 100 test digits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.command_line import parse
from experiments.digits import Digits, load_digits
from experiments.settings import Norm, group_whitening
from experiments.study import run_case
from experiments.training import Runs, States, finite
from gw_jax.analysis import analyze_norms

STEPS, BATCH_SIZE, GROUPS = 400, 16, 8
ITERATIONS = tuple(range(1, 10))
ANALYSED_DIGITS = 100


def zca(groups: int) -> Norm:
    """Group Whitening by eigendecomposition."""
    return Norm(f"GW by ZCA, {groups} groups", "gw_zca", (("num_groups", groups),))


def whitening_errors(runs: Runs, digits: Digits, states: States) -> list[list[float]]:
    """The median whitening error of each run and layer, ``[runs][layers]``; no layers for a run that diverged."""
    images = digits.images[digits.test[:: len(digits.test) // ANALYSED_DIGITS]]
    found: list[list[float]] = []
    for run, is_finite in enumerate(finite(states)):
        if not is_finite:
            found.append([])
            continue
        analyses = analyze_norms(runs.model(states, run), images)
        medians = [np.median(layer.after.whitening_error) for layer in analyses.values()]
        found.append([float(f"{median:.3g}") for median in medians])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    options = parse("iterations", __doc__, arguments, steps=STEPS, batch_size=BATCH_SIZE, groups=GROUPS)
    digits = load_digits()
    norms = [(str(count), group_whitening(GROUPS, count)) for count in ITERATIONS] + [("ZCA", zca(GROUPS))]
    for label, norm in norms[-2:] if options.quick else norms:
        runs = Runs(norm.mlp, digits)

        def measure(states: States, runs: Runs = runs) -> dict[str, Any]:
            initial = runs.initial(options.length.reported_seeds)
            return {
                "error_before_training": whitening_errors(runs, digits, initial),
                "error_after_training": whitening_errors(runs, digits, states),
            }

        options.recorder.add(iterations=label, **run_case(runs, digits, BATCH_SIZE, options.length, measure=measure))


if __name__ == "__main__":
    main()
