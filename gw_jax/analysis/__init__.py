"""Spectra, condition numbers and whitening errors before and after the norms of any model, and their plots."""

from gw_jax.analysis.history import plot_history
from gw_jax.analysis.norms import NormAnalysis, analyze_linen_norms, analyze_norms
from gw_jax.analysis.plots import (
    plot_condition_numbers,
    plot_covariances,
    plot_spectra,
    plot_whitening_errors,
)
from gw_jax.analysis.spectrum import Spectrum, covariance, spectrum

__all__ = [
    "NormAnalysis",
    "Spectrum",
    "analyze_linen_norms",
    "analyze_norms",
    "covariance",
    "plot_condition_numbers",
    "plot_covariances",
    "plot_history",
    "plot_spectra",
    "plot_whitening_errors",
    "spectrum",
]
