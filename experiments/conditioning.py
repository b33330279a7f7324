"""Conditioning of the activations before and after the norm while the reference's MLP trains: no norm, BN, GN and GW.

    python -m experiments.conditioning [--quick] [--seeds=5] [--out=DIRECTORY]

The spectrum ``l_1 >= ... >= l_256`` is that of the covariance of a layer's 256 channels over the 1,000 test digits, in
evaluation mode. ``l_1 / l_128``, the largest over the median eigenvalue, is the condition number that is recorded; the
smallest ones are rounding errors where units are dead or, with GW, where a group has fewer channels than there are groups.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.command_line import parse
from experiments.digits import Digits, load_digits
from experiments.settings import BATCH_NORM, NO_NORM, WIDTH, group_norm, group_whitening
from experiments.study import choose_rate, plan
from experiments.training import Runs, States, finite
from gw_jax.analysis import NormAnalysis, analyze_norms
from gw_jax.models.mnist import MLP
from gw_jax.nn import Identity

STEPS, EVERY, BATCH_SIZE = 400, 50, 16
NORMS = (NO_NORM, BATCH_NORM, group_norm(16), group_whitening(16))
SIDES = ("before", "after")


def analyses(runs: Runs, digits: Digits, states: States) -> list[list[NormAnalysis]]:
    """The spectra of each run and layer, ``[runs][layers]``, without the runs that diverged."""
    models = [runs.model(states, run) for run in np.flatnonzero(finite(states))]
    return [list(_analyze(model, digits.images[digits.test]).values()) for model in models]


def _analyze(model: MLP, images: np.ndarray) -> dict[str, NormAnalysis]:
    kinds = Identity if isinstance(model.norms[0], Identity) else None
    return analyze_norms(model, images, "^norms/", per="batch", kinds=kinds)


def moments(found: list[list[NormAnalysis]]) -> dict[str, Any]:
    """Condition numbers and effective ranks, ``[layers][runs]``, before and after the norm."""
    result: dict[str, Any] = {}
    for side in SIDES:
        spectra = [[getattr(layer, side) for layer in run] for run in found]
        conditions = np.asarray([[_median_condition(s.eigenvalues[0]) for s in run] for run in spectra])
        ranks = np.asarray([[s.effective_rank[0] for s in run] for run in spectra])
        result[f"condition_{side}"] = [[float(f"{x:.4g}") for x in layer] for layer in conditions.T]
        result[f"effective_rank_{side}"] = [[float(f"{x:.4g}") for x in layer] for layer in ranks.T]
    return result


def _median_condition(eigenvalues: np.ndarray) -> float:
    return float(eigenvalues[0] / max(eigenvalues[WIDTH // 2 - 1], np.finfo(float).tiny))


def last_spectra(found: list[list[NormAnalysis]]) -> dict[str, list[float]]:
    """The spectrum of the last norm's input and output relative to its largest eigenvalue, the median over runs."""
    result = {}
    for side in SIDES:
        eigenvalues = np.asarray([getattr(run[-1], side).eigenvalues[0] for run in found])
        relative = np.median(eigenvalues / eigenvalues[:, :1], axis=0)
        result[f"spectrum_{side}"] = [float(f"{x:.3g}") for x in relative]
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    options = parse("conditioning", __doc__, arguments, steps=STEPS, batch_size=BATCH_SIZE)
    digits, seeds = load_digits(), options.length.reported_seeds
    every = 1 if options.quick else EVERY
    for norm in NORMS[-2:] if options.quick else NORMS:
        runs = Runs(norm.mlp, digits)
        rate, grid = choose_rate(runs, digits, BATCH_SIZE, options.length)
        indices, rates = plan(digits.train, BATCH_SIZE, seeds, [rate] * len(seeds), options.length.steps)
        states, history = runs.initial(seeds), []
        found = analyses(runs, digits, states)
        history.append({"step": 0, **moments(found)})
        for start in range(0, options.length.steps, every):
            states, _ = runs.advance(states, indices[start : start + every], rates[start : start + every])
            found = analyses(runs, digits, states)
            history.append({"step": start + every, **moments(found)})
        diverged = (~finite(states)).tolist()
        options.recorder.add(
            norm=norm.label, rate=rate, grid=grid, diverged=diverged, history=history, **last_spectra(found)
        )


if __name__ == "__main__":
    main()
