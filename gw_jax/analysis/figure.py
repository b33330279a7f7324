"""Figures of matplotlib that any notebook displays and that change no state of ``matplotlib.pyplot``."""

import functools
import io
from typing import TYPE_CHECKING, Any

from gw_jax.errors import raise_missing_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LEGEND_ENTRIES = 10


@functools.cache
def _figure_class() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise_missing_package(error, "A plot")

    class NotebookFigure(Figure):
        """A figure that displays itself; Jupyter shows plain ones only after ``import matplotlib.pyplot``."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            FigureCanvasAgg(self).print_png(buffer)
            return buffer.getvalue()

    return NotebookFigure


def new_figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure of a size in inches."""
    figure = _figure_class()(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize="large")
    return figure


def layer_colors(count: int) -> list[Any]:
    """Colours of ``count`` layers by depth: distinct for a few, a scale from dark to light for many."""
    from matplotlib import colormaps

    if count <= MOST_LEGEND_ENTRIES:
        return [colormaps["tab10"](index) for index in range(count)]
    return [colormaps["viridis"](0.95 * index / (count - 1)) for index in range(count)]


def depth_colorbar(figure: "Figure", axes: Any, paths: list[str]) -> None:
    """A colour bar that names the first, the middle and the last of many layers."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    last = len(paths) - 1
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, last / 0.95), "viridis"), ax=axes, label="layer, in order of the calls"
    )
    bar.ax.set_ylim(0, last)
    ticks = sorted({round(last * share / 4) for share in range(5)})
    bar.set_ticks(ticks, labels=[shortened(paths[tick]) for tick in ticks])
    bar.ax.tick_params(labelsize="small")


def shortened(path: str, length: int = 28) -> str:
    """The end of a long path."""
    return path if len(path) <= length else f"...{path[3 - length :]}"


def log_scale(axes: Any) -> None:
    """A log y-axis of at least a decade, whose labels stay readable where the values are nearly equal."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10 * low:
        widen = (10 * low / high) ** 0.5
        axes.set_ylim(low / widen, high * widen)
