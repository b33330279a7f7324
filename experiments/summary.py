"""Numbers that the tables and the figures share: means, spreads and differences between cases."""

from typing import Any

import numpy as np


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and the sample standard deviation, zero for a single seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def percent(values: list[float]) -> str:
    """Accuracies of all seeds as "mean ± standard deviation" in percent."""
    mean, deviation = mean_and_deviation(values)
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def by_norm(result: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """The cases of ``batch_sizes`` or ``full_whitening`` by norm and batch size."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for case in result["cases"]:
        found.setdefault(case["norm"], {})[case["batch_size"]] = case
    return found


def distance_to_largest(cases: dict[int, dict[str, Any]], metric: str) -> tuple[float, float] | None:
    """Mean and standard deviation over seeds of accuracy at batch size 2 minus that at 256; None if one is missing."""
    if 2 not in cases or 256 not in cases:
        return None
    pairs = zip(cases[2][metric], cases[256][metric], strict=True)
    return mean_and_deviation([small - large for small, large in pairs])


def first_fall(cases: list[dict[str, Any]], metric: str, points: float = 0.02) -> int | None:
    """The group number from which on the mean accuracy stays more than ``points`` below the best; None if it never does.

    Args:
        cases: of one kind of norm, with ascending ``groups``.
        metric: "train_accuracy" or "test_accuracy".
        points: of accuracy; 0.02 is 2 percentage points.
    """
    means = [float(np.mean(case[metric])) for case in cases]
    best, fall = max(means), None
    for case, mean in zip(reversed(cases), reversed(means), strict=True):
        if mean >= best - points:
            break
        fall = case["groups"]
    return fall
