"""The plot of a quantity during training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from gw_jax.analysis.figure import layer_colors, log_scale, new_figure, shortened
from gw_jax.analysis.norms import NormAnalysis
from gw_jax.analysis.quantities import LABELS, Analyses, Quantity, as_list, percentiles
from gw_jax.errors import unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_history(
    history: Mapping[int, Analyses] | Mapping[str, ArrayLike],
    quantity: Quantity = "condition_number",
    *,
    steps: Sequence[float] | None = None,
    unit: str = "step",
    title: str | None = None,
) -> "Figure":
    """Plots a number before and after norms during training.

    Args:
        history: ``{step: analyze_norms(model, images)}``; lines are medians over the samples. Or ``{label: values}`` with
            values ``[s]``, or ``[runs, s]`` of several runs, whose median and 10th to 90th percentile are drawn.
        quantity: "condition_number", "whitening_error", "effective_rank" or "rank".
        steps: ``[s]``, for ``{label: values}``.
        unit: unit of the steps, the label of the axis.
        title: of the figure; None for a standard one.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ValueError: an unknown quantity, no values, or ``steps`` of another length.
        ConfigError: matplotlib is not installed.

    Example:
        >>> from gw_jax.analysis import plot_history
        >>> figure = plot_history({"BN": [3.0, 8.0, 20.0], "GW": [1.1, 1.2, 1.2]}, steps=[0, 100, 200])
        >>> figure.axes[0].get_xlabel()
        'step'
    """
    if quantity not in LABELS:
        raise ValueError(unknown_name("quantity", quantity, get_args(Quantity)))
    if not history:
        raise ValueError("The history is empty; give {step: analyze_norms(model, images)} or {label: values}.")
    if steps is None:
        steps, curves = _curves_of(history, quantity)
    else:
        curves = {str(label): (np.atleast_2d(np.asarray(values, float)), {}) for label, values in history.items()}
        colors = layer_colors(len(curves))
        for (_, style), color in zip(curves.values(), colors, strict=True):
            style["color"] = color
    name = quantity.replace("_", " ").capitalize()
    figure = new_figure(8.5, 4.8, title or f"{name} during training")
    axes = figure.subplots()
    for label, (values, style) in curves.items():
        if values.shape[1] != len(steps):
            raise ValueError(f"{label!r} has {values.shape[1]} values for {len(steps)} steps; give one value per step.")
        low, middle, high = percentiles(values)
        axes.plot(steps, middle, label=label, marker="." if len(steps) <= 50 else None, **style)
        if len(values) > 1:
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.set(xlabel=unit, ylabel=LABELS[quantity])
    log_scale(axes)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _curves_of(history: Any, quantity: str) -> tuple[list[float], dict[str, tuple[np.ndarray, dict[str, Any]]]]:
    """Steps, and by label the medians over the samples ``[1, s]`` and the style of a line."""
    if not all(isinstance(value, (NormAnalysis, Mapping)) for value in history.values()):
        raise ValueError("Give steps= with {label: values}, or {step: analyze_norms(model, images)}.")
    steps = sorted(history)
    analyses = [{layer.path: layer for layer in as_list(history[step])} for step in steps]
    paths = [path for path in analyses[0] if all(path in found for found in analyses)]
    curves: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    for path, color in zip(paths, layer_colors(len(paths)), strict=True):
        for side, line in (("before", "--"), ("after", "-")):
            numbers = [getattr(getattr(found[path], side), quantity) for found in analyses]
            values = np.asarray([[percentiles(of_samples)[1] for of_samples in numbers]])
            curves[f"{side} {shortened(path or analyses[0][path].kind)}"] = (values, {"color": color, "linestyle": line})
    return steps, curves
