"""The plot of a run's curves, and the picture that its task draws."""

import contextlib
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from gw_jax.errors import UserError, raise_missing_package
from gw_jax.files import replacing
from gw_jax.train.metrics import read_metrics
from gw_jax.train.task import Curve, DrawsResult, Task
from gw_jax.train.workdir import warn_unwritable

CURVES_FILE = "curves.png"


def plot_result(workdir: pathlib.Path, task: Task) -> None:
    """Draws the curves and the task's own picture; where that is impossible, a warning says so: the run has succeeded."""
    if task.curves:
        with _warn_undrawn(workdir / CURVES_FILE):
            print(f"Curves: {plot_curves(workdir, task.curves, task.description)}")
    if isinstance(task, DrawsResult):
        with _warn_undrawn(workdir / "the picture of the result"):
            if (picture := task.draw(workdir)) is not None:
                print(f"Picture: {picture}")


@contextlib.contextmanager
def _warn_undrawn(path: pathlib.Path) -> Iterator[None]:
    try:
        with warn_unwritable(path):
            yield
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)


def plot_curves(workdir: pathlib.Path, curves: Sequence[Curve], description: str) -> pathlib.Path:
    """Draws ``curves``, side by side, over the epochs of ``metrics.jsonl`` into ``curves.png``, and returns its path.

    Args:
        workdir: the work directory; its name is that of the run.
        curves: what is drawn.
        description: network and data, beside the name of the run in the title.

    Raises:
        OSError: the picture cannot be written.
    """
    try:
        # The objects, not pyplot: no display is needed, and no global state changes.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError as error:
        raise_missing_package(error, "config.log.plot")
    lines = read_metrics(workdir)
    figure = Figure(figsize=(5 * len(curves), 4.2), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        drawn, texts = [], []
        for name in curve.metrics:
            epochs, values = _series(lines, name, curve)
            evaluation = name.startswith("eval/")
            style: dict[str, Any] = {"marker": "o", "markersize": 3} if evaluation else {"alpha": 0.6}
            drawn += axes.plot(epochs, values, **style)
            texts.append(_legend(name, epochs, values, curve))
        axes.set_title(curve.title, fontsize="medium")
        axes.grid(alpha=0.3, which="both" if curve.log_scale else "major")
        axes.legend(drawn, texts, fontsize="small")
        if curve.log_scale:
            axes.set_yscale("log", nonpositive="mask")
            low, high = axes.get_ylim()
            plain = FuncFormatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_major_formatter(plain)
            # Within a decade the powers of ten are too few numbers.
            axes.yaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())
    # A name may hold what matplotlib takes for mathematics.
    title = f"{workdir.resolve().name}: {description}".replace("$", r"\$")
    figure.suptitle(title, fontsize="medium")
    figure.supxlabel("epoch", fontsize="medium")
    path = workdir / CURVES_FILE
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    return path


def _series(lines: list[dict[str, Any]], name: str, curve: Curve) -> tuple[list[float], list[float]]:
    points = [(line["epoch"], line[name]) for line in lines if name in line and "epoch" in line]
    return [x for x, _ in points], [1 - y if curve.complement else y for _, y in points]


def _legend(name: str, epochs: list[float], values: list[float], curve: Curve) -> str:
    """Name, last and best value, such as "1 - eval/accuracy: last 0.0190, best 0.0170 (epoch 9)"."""
    text = f"1 - {name}" if curve.complement else name
    finite = [(value, epoch) for value, epoch in zip(values, epochs, strict=True) if math.isfinite(value)]
    if not finite:
        return text
    best, epoch = (min if curve.best == "min" else max)(finite, key=lambda point: point[0])
    return f"{text}: last {values[-1]:.4g}, best {best:.4g} (epoch {epoch:g})"
