"""The curves of a run as a picture."""

import pathlib
from collections.abc import Sequence
from typing import Any

from gw_jax.errors import raise_missing_package
from gw_jax.files import replacing
from gw_jax.train.metrics import read_metrics

CURVES_FILE = "curves.png"


def plot_curves(workdir: pathlib.Path, panels: Sequence[tuple[str, Sequence[str]]]) -> pathlib.Path:
    """Draws metrics of ``metrics.jsonl`` over epochs into ``curves.png``, and returns its path.

    Args:
        workdir: the directory of both files.
        panels: a title and the metrics of each panel, side by side: ``("loss", ["train/loss", "eval/loss"])``. A panel of
            losses has a logarithmic axis. Titles name the last evaluation of a panel.

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
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        drawn = []
        for name in names:
            epochs, values = _series(lines, name)
            evaluation = name.startswith("eval/")
            style: dict[str, Any] = {"marker": "o", "markersize": 3} if evaluation else {"alpha": 0.6}
            drawn += axes.plot(epochs, values, **style)
            if evaluation and values:
                title = f"{title}: {values[-1]:.4f} ({name})"
        axes.set_title(f"{title}, over epochs", fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(drawn, list(names))
        if all(name.endswith("loss") for name in names):
            axes.set_yscale("log")
    path = workdir / CURVES_FILE
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    return path


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(line["epoch"], line[name]) for line in lines if name in line and "epoch" in line]
    return [x for x, _ in points], [y for _, y in points]
