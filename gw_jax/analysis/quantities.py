"""The quantities that are plotted, their labels, and their spread over samples."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from gw_jax.analysis.norms import NormAnalysis

Quantity = Literal["condition_number", "whitening_error", "effective_rank", "rank"]
Analyses = NormAnalysis | Mapping[str, NormAnalysis]
LABELS: dict[str, str] = {
    "condition_number": "condition number of the covariance",
    "whitening_error": r"whitening error $\|C - I\|_F / \sqrt{d}$",
    "effective_rank": "effective rank of the covariance",
    "rank": "rank of the covariance",
}
# Shares of the samples, or of the runs, between the edges of a band.
BAND = (10, 90)


def as_list(analyses: Analyses) -> list[NormAnalysis]:
    """The analyses in order.

    Raises:
        ValueError: there are none.
    """
    layers = [analyses] if isinstance(analyses, NormAnalysis) else list(analyses.values())
    if not layers:
        raise ValueError("There is no analysis to plot; analyze_norms returns one per norm of a model.")
    return layers


def percentiles(values: np.ndarray) -> np.ndarray:
    """Low, median and high ``[3, ...]`` over the first axis, without NaN; NaN where there is nothing else."""
    values = np.asarray(values, float)
    sorts = np.moveaxis(values, 0, -1)
    found = np.full((3, *sorts.shape[:-1]), np.nan)
    some = ~np.isnan(sorts).all(-1)
    if some.any():
        found[:, some] = np.nanpercentile(sorts[some], (BAND[0], 50, BAND[1]), axis=-1)
    return found
