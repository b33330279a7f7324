"""The curves of a run as a picture."""

import pathlib
from typing import Any

from gw_jax.errors import raise_missing_package
from gw_jax.train.metrics import read_metrics

CURVES_FILE = "curves.png"


def plot_curves(workdir: pathlib.Path) -> pathlib.Path:
    """Draws loss and top-1 over epochs from ``metrics.jsonl`` into ``curves.png`` and returns its path."""
    try:
        # The objects, not pyplot: no display is asked for, and nothing global changes.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise_missing_package(error, "config.log.plot")
    lines = read_metrics(workdir)
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("cross-entropy", "top-1 accuracy"), strict=True):
        for split, style in (("train", {"alpha": 0.6}), ("eval", {"marker": "o", "markersize": 3})):
            epochs, values = _series(lines, f"{split}/{name}")
            axes.plot(epochs, values, label=split, **style)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
        if name == "loss":
            axes.set_yscale("log")
        else:
            last = _series(lines, "eval/top1")[1]
            axes.set_title(f"eval top-1 {last[-1]:.4f}" if last else "")
    path = workdir / CURVES_FILE
    temporary = workdir / f".{CURVES_FILE}"
    FigureCanvasAgg(figure).print_png(temporary)
    temporary.replace(path)
    return path


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(line["epoch"], line[name]) for line in lines if name in line]
    return [x for x, _ in points], [y for _, y in points]
