"""Plots of the analysis of norms: spectra, numbers by layer, covariances, and numbers during training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gw_jax.analysis.figure import MOST_LEGEND_ENTRIES, depth_colorbar, layer_colors, log_scale, new_figure, shortened
from gw_jax.analysis.norms import NormAnalysis
from gw_jax.analysis.quantities import BAND, LABELS, Analyses, Quantity, as_list, percentiles
from gw_jax.analysis.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEFORE, _AFTER = "tab:orange", "tab:blue"


def plot_spectra(analyses: Analyses, *, title: str | None = None) -> "Figure":
    """Plots the eigenvalues of the covariances before and after norms, in descending order, on a log axis.

    A line is the median over the samples. With one layer a band shows the samples between the 10th and the 90th
    percentile. Eigenvalues that count as zero (see :class:`Spectrum`) are left out. Up to 10 layers are named in a legend;
    more have colours by depth.

    Args:
        analyses: what :func:`analyze_norms` returned, or one of its values.
        title: of the figure; None for a standard one.

    Returns:
        A matplotlib ``Figure``; ``figure.savefig("spectra.png")`` writes it.

    Raises:
        ValueError: there is no analysis.
        ConfigError: matplotlib is not installed.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import gw_jax
        >>> from gw_jax.analysis import analyze_norms, plot_spectra
        >>> norm = gw_jax.GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (4, 7, 7, 64)) @ jax.random.normal(jax.random.key(1), (64, 64))
        >>> figure = plot_spectra(analyze_norms(norm, x))
        >>> len(figure.axes)
        2
    """
    layers = as_list(analyses)
    figure = new_figure(11, 4.5, title or f"Spectra of activations, {_described(layers)}")
    panels = figure.subplots(1, 2, sharey=True)
    colors = layer_colors(len(layers))
    for panel, side in zip(panels, ("before", "after"), strict=True):
        for layer, color in zip(layers, colors, strict=True):
            found: Spectrum = getattr(layer, side)
            shown = np.arange(found.num_variables) < found.rank[:, None]
            values = np.where(shown, found.eigenvalues, np.nan)
            index = np.arange(1, found.num_variables + 1)
            low, middle, high = percentiles(values)
            marker = "." if found.num_variables <= 64 and len(layers) == 1 else None
            panel.plot(index, middle, color=color, marker=marker, linewidth=1.2, label=shortened(layer.path or layer.kind))
            if len(layers) == 1 and len(values) > 1:
                panel.fill_between(index, low, high, color=color, alpha=0.25, linewidth=0, label=_band_label("samples"))
        panel.axhline(1, color="gray", linestyle=":", linewidth=1, label="white: all eigenvalues are 1")
        panel.set(title=f"{side} the norm", xlabel="index of the eigenvalue, largest first")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("eigenvalue (squared units of the activations)")
    log_scale(panels[0])
    if len(layers) > MOST_LEGEND_ENTRIES:
        depth_colorbar(figure, panels, [layer.path for layer in layers])
        panels[1].legend(handles=panels[1].lines[-1:], fontsize="small")
    else:
        panels[1].legend(fontsize="small")
    return figure


def plot_condition_numbers(analyses: Analyses, *, title: str | None = None) -> "Figure":
    """Plots the condition number of the covariance before and after every norm, by depth, on a log axis.

    Markers are medians over the samples, bars reach from the 10th to the 90th percentile. A hollow marker stands for layers
    with a singular covariance in some sample: there the number is that of the subspace with variance (see
    :attr:`Spectrum.condition_number`).

    Args:
        analyses: what :func:`analyze_norms` returned, or one of its values.
        title: of the figure; None for a standard one.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ValueError: there is no analysis.
        ConfigError: matplotlib is not installed.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import gw_jax
        >>> from gw_jax.analysis import analyze_norms, plot_condition_numbers
        >>> norm = gw_jax.GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
        >>> figure = plot_condition_numbers(analyze_norms(norm, jax.random.normal(jax.random.key(0), (4, 7, 7, 64))))
        >>> figure.axes[0].get_yscale()
        'log'
    """
    return _plot_by_layer(analyses, "condition_number", title)


def plot_whitening_errors(analyses: Analyses, *, title: str | None = None) -> "Figure":
    """Plots the whitening error before and after every norm, by depth, on a log axis; see :func:`plot_condition_numbers`.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import gw_jax
        >>> from gw_jax.analysis import analyze_norms, plot_whitening_errors
        >>> norm = gw_jax.GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
        >>> figure = plot_whitening_errors(analyze_norms(norm, jax.random.normal(jax.random.key(0), (4, 7, 7, 64))))
        >>> figure.axes[0].get_xlabel()
        'layer, in the order of the calls'
    """
    return _plot_by_layer(analyses, "whitening_error", title)


def _plot_by_layer(analyses: Analyses, quantity: Quantity, title: str | None) -> "Figure":
    layers = as_list(analyses)
    name = quantity.replace("_", " ").capitalize()
    figure = new_figure(max(5.5, 1.8 + 0.38 * len(layers)), 5.2, title or f"{name} by layer, {_described(layers)}")
    axes = figure.subplots()
    singular = False
    for side, color, offset, marker in (("before", _BEFORE, -0.12, "s"), ("after", _AFTER, 0.12, "o")):
        spectra: list[Spectrum] = [getattr(layer, side) for layer in layers]
        values = np.asarray([percentiles(getattr(found, quantity)) for found in spectra]).T
        place = np.arange(len(layers)) + offset
        bars = np.stack([values[1] - values[0], values[2] - values[1]])
        axes.errorbar(place, values[1], bars, color=color, linestyle="none", elinewidth=1.2, capsize=2)
        axes.plot(place, values[1], color=color, linewidth=0.8, alpha=0.5)
        axes.plot(place, values[1], marker, color=color, markersize=5, label=side)
        if quantity == "condition_number":
            hollow = np.asarray([bool((found.rank < found.num_variables).any()) for found in spectra])
            axes.plot(place[hollow], values[1][hollow], marker, color=color, markersize=5, markerfacecolor="white")
            singular = singular or bool(hollow.any())
    if singular:
        axes.plot(
            [], [], "o", color="gray", markerfacecolor="white", label="singular in some sample: number of its subspace"
        )
    axes.set(ylabel=LABELS[quantity], xlim=(-0.6, len(layers) - 0.4))
    log_scale(axes)
    axes.set_xticks(range(len(layers)), [shortened(layer.path or layer.kind) for layer in layers])
    axes.tick_params(axis="x", rotation=90 if len(layers) > 4 else 0, labelsize="small")
    axes.set_xlabel("layer, in the order of the calls")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def plot_covariances(analysis: NormAnalysis, *, sample: int = 0, title: str | None = None) -> "Figure":
    """Shows the covariance of one sample (or of the batch) before and after a norm, with one colour bar.

    Both are divided by the mean of their variances, which the panels state, since inputs may have any scale.

    Args:
        analysis: a value of what :func:`analyze_norms` returned with ``keep_covariance=True``.
        sample: which of the ``k`` covariances.
        title: of the figure; None for a standard one.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ValueError: the analysis has no covariances, or no such sample.
        ConfigError: matplotlib is not installed.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import gw_jax
        >>> from gw_jax.analysis import analyze_norms, plot_covariances
        >>> norm = gw_jax.GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (4, 7, 7, 64))
        >>> figure = plot_covariances(analyze_norms(norm, x, keep_covariance=True)[""], sample=2)
        >>> [axes.get_xlabel() for axes in figure.axes[:2]]
        ['channel group', 'channel group']
    """
    before, after = analysis.before.covariance, analysis.after.covariance
    if before is None or after is None:
        raise ValueError("The analysis has no covariances; call analyze_norms(..., keep_covariance=True).")
    if not 0 <= sample < len(before):
        raise ValueError(f"sample={sample}; the analysis has the covariances 0 to {len(before) - 1}.")
    of = "the batch" if analysis.per == "batch" else f"sample {sample}"
    where = f" {analysis.path}" if analysis.path else ""
    figure = new_figure(9.5, 4.8, title or f"Covariance of {of} before and after {analysis.kind}{where}")
    panels = figure.subplots(1, 2)
    variances = [float(np.trace(matrix[sample])) / len(matrix[sample]) for matrix in (before, after)]
    scaled = [matrix[sample] / (variance or 1) for matrix, variance in zip((before, after), variances, strict=True)]
    limit = max(float(np.abs(matrix).max()) for matrix in scaled) or 1.0
    names = "channel group" if analysis.before.num_variables < analysis.num_features else "channel"
    for panel, side, matrix, variance, found in zip(
        panels, ("before", "after"), scaled, variances, (analysis.before, analysis.after), strict=True
    ):
        image = panel.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        panel.set(xlabel=names, ylabel=names)
        for axis in (panel.xaxis, panel.yaxis):
            axis.get_major_locator().set_params(integer=True)
        panel.set_title(
            f"{side}\nmean variance {variance:.3g}, condition number {_number(found, sample)}", fontsize="medium"
        )
    figure.colorbar(image, ax=panels, label="covariance / mean variance")
    return figure


def _band_label(of: str) -> str:
    return f"{BAND[0]}th to {BAND[1]}th percentile of the {of}"


def _described(layers: Sequence[NormAnalysis]) -> str:
    """Over which samples, for the title."""
    first = layers[0]
    if first.per == "batch":
        return "covariance of the batch"
    return f"covariance of each of {len(first.before.eigenvalues)} samples"


def _number(found: Spectrum, sample: int) -> str:
    if not found.rank[sample]:
        return "undefined"
    note = "" if found.rank[sample] == found.num_variables else f" (rank {found.rank[sample]})"
    return f"{found.condition_number[sample]:.3g}{note}"
