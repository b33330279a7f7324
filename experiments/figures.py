"""The figures of docs/experiments.md, from the results; nothing is trained.

    python -m experiments.figures [--results=DIRECTORY] [--figures=docs]

A figure whose experiment has not run is not drawn, and a line says so. Colours are those of Okabe and Ito, which
readers with colour-blindness tell apart; each line has a marker of its own, too.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.results import DIRECTORY, load
from experiments.summary import by_norm, distance_to_largest, first_fall

FIGURES_DIRECTORY = pathlib.Path(__file__).parents[1] / "docs"
STYLES = {
    "no norm": ("#7f7f7f", "x"),
    "BN": ("#D55E00", "o"),
    "DBN, blocks of 16": ("#E69F00", "s"),
    "IterNorm, blocks of 16": ("#CC79A7", "D"),
    "DBN, full": ("#000000", "P"),
    "IterNorm, full": ("#56B4E9", "*"),
    "GN, 16 groups": ("#009E73", "^"),
    "GW, 16 groups": ("#0072B2", "v"),
    "GN": ("#009E73", "^"),
    "GW": ("#0072B2", "v"),
}
METRICS = (("train_accuracy", "training accuracy"), ("test_accuracy", "test accuracy"))


def new_figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of a size in inches and its axes in one row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def accuracy_line(
    axis: Any, x: Sequence[Any], cases: list[dict[str, Any]], metric: str, style: str, label: str, line: str = "-"
) -> None:
    """The mean accuracy in percent with the standard deviation over seeds."""
    values = 100 * np.asarray([case[metric] for case in cases])
    color, marker = STYLES[style]
    deviation = values.std(1, ddof=1) if values.shape[1] > 1 else None
    look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5, "capsize": 2, "lw": 1.4, "ls": line}
    axis.errorbar(x, values.mean(1), deviation, label=label, **look)


def powers_of_two(axis: Any, values: Sequence[int], label: str) -> None:
    """An axis of powers of two, every one of them named."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [str(value) for value in values])
    axis.set_xlabel(label)


def batch_sizes(directory: pathlib.Path) -> Any:
    """Accuracy over the batch size; the legend states the distance of batch size 2 to 256."""
    result = load("batch_sizes", directory)
    measured = by_norm(result)
    if (directory / "full_whitening.json").exists():
        measured |= by_norm(load("full_whitening", directory))
    figure, axes = new_figure(11, 5.6, 2, sharey=True)
    for axis, (metric, title) in zip(axes, METRICS, strict=True):
        for norm, cases in measured.items():
            sizes = sorted(cases)
            distance = distance_to_largest(cases, metric)
            note = "" if distance is None else f": {100 * distance[0]:+.1f}"
            # Two far points are not a course: they stay unconnected.
            line = "-" if len(sizes) > 2 else ""
            accuracy_line(axis, sizes, [cases[size] for size in sizes], metric, norm, norm + note, line)
        powers_of_two(axis, sorted({case["batch_size"] for case in result["cases"]}), "batch size (digits per step)")
        axis.set_title(title)
        axis.set_ylim(bottom=0)  # Room for the legend.
        axis.legend(
            title="accuracy at 2 minus at 256 (percentage points)", fontsize=8, title_fontsize=8, loc="lower right", ncols=2
        )
    axes[0].set_ylabel("accuracy (%)")
    figure.suptitle(f"MLP 4 x 256 on 4,000 digits, {_runs(result)}")
    return figure


def groups(directory: pathlib.Path) -> Any:
    """Accuracy over the group number, and the number from which on it has fallen."""
    result = load("groups", directory)
    width = result["width"]
    figure, axes = new_figure(11, 4.8, 2, sharey=True)
    for axis, (metric, title) in zip(axes, METRICS, strict=True):
        for kind in ("GN", "GW"):
            cases = [case for case in result["cases"] if case["kind"] == kind]
            if not cases:
                continue
            fall = first_fall(cases, metric)
            note = (
                f"no fall up to g = {cases[-1]['groups']}"
                if fall is None
                else f"falls from g = {fall} on: g(g+1) = {fall * (fall + 1)} = {fall * (fall + 1) / width:.2f} x width"
            )
            accuracy_line(axis, [case["groups"] for case in cases], cases, metric, kind, f"{kind}: {note}")
        near = (np.sqrt(1 + 4 * width) - 1) / 2
        axis.axvline(near, color="black", ls=":", lw=1)
        axis.text(near, 0.99, f" g(g+1) = {width}", transform=axis.get_xaxis_transform(), va="top", fontsize=8)
        powers_of_two(axis, sorted({case["groups"] for case in result["cases"]}), "groups g")
        axis.set_title(title)
        axis.legend(title="fall: more than 2 points below the best", fontsize=8, title_fontsize=8, loc="lower left")
    axes[0].set_ylabel("accuracy (%)")
    figure.suptitle(f"Group number at width {width}, batch size {result['batch_size']}, {_runs(result)}")
    return figure


def iterations(directory: pathlib.Path) -> Any:
    """Accuracy and whitening error over the number of Newton-Schulz iterations."""
    result = load("iterations", directory)
    labels = [case["iterations"] for case in result["cases"]]
    places = range(len(labels))
    figure, (left, right) = new_figure(10, 4.4, 2)
    for (metric, title), style in zip(METRICS, ("GW", "BN"), strict=True):
        accuracy_line(left, places, result["cases"], metric, style, title)
    left.set_ylabel("accuracy (%)")
    for key, style, label in (
        ("error_before_training", "GN", "before training"), ("error_after_training", "GW", "after training"),
    ):  # fmt: skip
        errors = [[float(np.mean(layers)) for layers in case[key] if layers] for case in result["cases"]]
        means = [np.mean(runs) if runs else np.nan for runs in errors]
        right.plot(places, means, color=STYLES[style][0], marker=STYLES[style][1], label=label)
    right.set_yscale("log")
    right.set_ylabel("whitening error |C - I| / sqrt(g), mean of 4 layers")
    for axis in (left, right):
        axis.set_xticks(list(places), labels)
        axis.set_xlabel("Newton-Schulz iterations T, and ZCA")
        axis.legend()
    figure.suptitle(f"GW with {result['groups']} groups, batch size {result['batch_size']}, {_runs(result)}")
    return figure


def placements(directory: pathlib.Path) -> Any:
    """Accuracy of each seed and their mean, by placement."""
    result = load("placements", directory)
    labels = [case["placement"] for case in result["cases"]]
    figure, axes = new_figure(10, 4, 2, sharey=True)
    for axis, (metric, title) in zip(axes, METRICS, strict=True):
        for place, case in enumerate(result["cases"]):
            values = 100 * np.asarray(case[metric])
            axis.plot(values, [place] * len(values), "o", color=STYLES["GW"][0], alpha=0.5, ms=5)
            axis.plot(values.mean(), place, "|", color="black", ms=18, mew=2)
            axis.annotate(
                f"{values.mean():.1f}", (values.mean(), place), (0, 11), textcoords="offset points", ha="center", fontsize=8
            )
        axis.set_title(title)
        axis.set_xlabel("accuracy (%); points are seeds, bars their mean")
    axes[0].set_yticks(range(len(labels)), ["none (all BN)" if label == "none" else label for label in labels])
    axes[0].invert_yaxis()
    axes[0].set_ylabel("placement of GW")
    figure.suptitle(f"Small ResNet, 14x14 digits, batch size {result['batch_size']}, {_runs(result)}")
    return figure


def conditioning(directory: pathlib.Path) -> Any:
    """Condition numbers before and after the last norm while training, and the spectra at the end."""
    result = load("conditioning", directory)
    figure, axes = new_figure(13, 4.6, 3)
    axes[1].sharey(axes[0])
    for axis, side in zip(axes[:2], ("before", "after"), strict=True):
        for case in result["cases"]:
            color, marker = STYLES[case["norm"]]
            steps = [entry["step"] for entry in case["history"] if entry[f"condition_{side}"]]
            values = [entry[f"condition_{side}"][-1] for entry in case["history"] if entry[f"condition_{side}"]]
            axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15, lw=0)
            axis.plot(steps, [np.median(v) for v in values], color=color, marker=marker, label=case["norm"])
        axis.set_title(f"{side} the last norm")
        axis.set_xlabel("training step")
        axis.set_yscale("log")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("largest / median eigenvalue of 256\n(median and range of seeds)")
    for case in result["cases"]:
        axes[2].plot(range(1, 257), case["spectrum_after"], color=STYLES[case["norm"]][0], label=case["norm"])
    axes[2].set_yscale("log")
    axes[2].set_ylim(1e-7, 2)
    axes[2].set_title("spectrum after the last norm, at the end")
    axes[2].set_xlabel("index of the eigenvalue")
    axes[2].set_ylabel("eigenvalue / largest")
    axes[2].legend(fontsize=8)
    figure.suptitle(f"Covariance of a layer's 256 channels over 1,000 test digits, {_runs(result)}")
    return figure


def _runs(result: dict[str, Any]) -> str:
    return (
        f"{result['steps']} steps, mean of {len(result['seeds'])} seeds, bars: standard deviation"
        if (result["experiment"] in ("batch_sizes", "groups", "iterations"))
        else f"{result['steps']} steps, {len(result['seeds'])} seeds"
    )


FIGURES: dict[str, Callable[[pathlib.Path], Any]] = {
    "batch_sizes": batch_sizes,
    "groups": groups,
    "iterations": iterations,
    "placements": placements,
    "conditioning": conditioning,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws every figure whose result exists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=DIRECTORY)
    parser.add_argument("--figures", type=pathlib.Path, default=FIGURES_DIRECTORY)
    args = parser.parse_args(arguments)
    for name, draw in FIGURES.items():
        if not (args.results / f"{name}.json").exists():
            print(f"{name}: not drawn, it has not run")
            continue
        path = args.figures / f"experiments_{name}.png"
        draw(args.results).savefig(path, dpi=90)
        print(path)


if __name__ == "__main__":
    main()
