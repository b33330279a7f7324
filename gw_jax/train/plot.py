"""The plot of a run's curves."""

import pathlib
from collections.abc import Sequence
from typing import Any

from gw_jax.errors import raise_missing_package
from gw_jax.files import replacing
from gw_jax.train.metrics import read_metrics
from gw_jax.train.task import Curve

CURVES_FILE = "curves.png"


def plot_curves(workdir: pathlib.Path, curves: Sequence[Curve]) -> pathlib.Path:
    """Draws ``curves``, side by side, over the epochs of ``metrics.jsonl`` into ``curves.png``, and returns its path.

    Raises:
        OSError: the picture cannot be written.
    """
    try:
        # The objects, not pyplot: no display is needed, and no global state changes.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise_missing_package(error, "config.log.plot")
    lines = read_metrics(workdir)
    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        title, drawn = curve.title, []
        for name in curve.metrics:
            epochs, values = _series(lines, name)
            evaluation = name.startswith("eval/")
            style: dict[str, Any] = {"marker": "o", "markersize": 3} if evaluation else {"alpha": 0.6}
            drawn += axes.plot(epochs, values, **style)
            if evaluation and values:
                title = f"{curve.title}: {name} {values[-1]:.4f}"
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(drawn, list(curve.metrics))
        if curve.log_scale:
            axes.set_yscale("log")
    figure.supxlabel("epoch", fontsize="medium")
    path = workdir / CURVES_FILE
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    return path


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(line["epoch"], line[name]) for line in lines if name in line and "epoch" in line]
    return [x for x, _ in points], [y for _, y in points]
