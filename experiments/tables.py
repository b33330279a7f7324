"""The tables of docs/experiments.md, from the results.

    python -m experiments.tables [--results=DIRECTORY] [--write=docs/experiments.md]

Without ``--write`` they are printed. With it, each replaces what stands between ``<!-- table: NAME -->`` and
``<!-- end -->`` in the file. A case that has not run is shown as "not run".
"""

import argparse
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.results import DIRECTORY, load
from experiments.summary import by_norm, distance_to_largest, percent

MISSING = "not run"
METRICS = {"train": "train_accuracy", "test": "test_accuracy"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column aligned to the left."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def runs_table(directory: pathlib.Path) -> str:
    """Command, date, length and duration of every experiment."""
    rows = []
    for name in EXPERIMENTS:
        if not (directory / f"{name}.json").exists():
            rows.append([f"`python -m experiments.{name}`", *[MISSING] * 6])
            continue
        r = load(name, directory)
        minutes = [f"{r[key] / 60:.1f}" for key in ("duration_seconds", "duration_cpu_seconds")]
        cases = f"{len(r['cases'])} of {len(expected_cases(name))}"
        rows.append([f"`{r['command']}`", r["date"], str(r["steps"]), str(len(r["seeds"])), cases, *minutes])
    return table(["command", "date", "steps", "seeds", "cases", "minutes", "CPU minutes"], rows)


def expected_cases(name: str) -> list[Any]:
    """The cases that a complete run of the experiment ``name`` has."""
    from experiments import batch_sizes, conditioning, full_whitening, groups, iterations, placements

    return {
        "batch_sizes": [(norm.label, b) for norm in batch_sizes.NORMS for b in batch_sizes.BATCH_SIZES],
        "full_whitening": [(norm.label, b) for norm in full_whitening.NORMS for b in full_whitening.BATCH_SIZES],
        "groups": [(kind, count) for kind in ("GN", "GW") for count in groups.GROUPS],
        "iterations": [*map(str, iterations.ITERATIONS), "ZCA"],
        "placements": list(placements.PLACEMENTS),
        "conditioning": [norm.label for norm in conditioning.NORMS],
    }[name]


def batch_sizes_table(directory: pathlib.Path, metric: str) -> str:
    """Accuracy by norm and batch size, and the distance of batch size 2 to 256."""
    rows, sizes = [], sorted({size for _, size in expected_cases("batch_sizes")})
    for name in ("batch_sizes", "full_whitening"):
        measured = by_norm(load(name, directory)) if (directory / f"{name}.json").exists() else {}
        expected = expected_cases(name)
        for norm in dict.fromkeys(norm for norm, _ in expected):
            cases = measured.get(norm, {})
            cells = [_accuracy(cases.get(size), metric) if (norm, size) in expected else "-" for size in sizes]
            distance = distance_to_largest(cases, metric)
            cells.append(MISSING if distance is None else f"{100 * distance[0]:+.1f} ± {100 * distance[1]:.1f}")
            rows.append([norm, *cells])
    return table(["norm", *map(str, sizes), "2 minus 256"], rows)


def rates_table(directory: pathlib.Path) -> str:
    """The learning rates that were chosen, by norm and batch size."""
    rows, sizes = [], sorted({size for _, size in expected_cases("batch_sizes")})
    for name in ("batch_sizes", "full_whitening"):
        if (directory / f"{name}.json").exists():
            for norm, cases in by_norm(load(name, directory)).items():
                rows.append([norm, *(f"{cases[size]['rate']:g}" if size in cases else "-" for size in sizes)])
    return table(["norm", *map(str, sizes)], rows)


def groups_table(directory: pathlib.Path) -> str:
    """Accuracy by group number."""
    found = {(case["kind"], case["groups"]): case for case in load("groups", directory)["cases"]}
    rows = []
    for groups in sorted({count for _, count in expected_cases("groups")}):
        cells = [_accuracy(found.get((kind, groups)), metric) for kind in ("GN", "GW") for metric in METRICS.values()]
        rates = [f"{found[kind, groups]['rate']:g}" if (kind, groups) in found else "-" for kind in ("GN", "GW")]
        rows.append([str(groups), str(groups * (groups + 1)), *cells, " / ".join(rates)])
    head = ["groups g", "g (g + 1)", "GN train", "GN test", "GW train", "GW test", "learning rate GN / GW"]
    return table(head, rows)


def iterations_table(directory: pathlib.Path) -> str:
    """Accuracy and whitening error by number of iterations."""
    found = {case["iterations"]: case for case in load("iterations", directory)["cases"]}
    rows = []
    for label in expected_cases("iterations"):
        case = found.get(label)
        cells = [_accuracy(case, metric) for metric in METRICS.values()]
        errors = [_error(case, f"error_{when}_training") for when in ("before", "after")]
        rows.append([label, *cells, *errors, MISSING if case is None else f"{case['rate']:g}"])
    head = ["iterations", "train", "test", "error before training", "error after training", "learning rate"]
    return table(head, rows)


def placements_table(directory: pathlib.Path) -> str:
    """Accuracy by placement."""
    found = {case["placement"]: case for case in load("placements", directory)["cases"]}
    rows = []
    for placement in expected_cases("placements"):
        case = found.get(placement)
        cells = [_accuracy(case, metric) for metric in METRICS.values()]
        rows.append([placement, *cells, MISSING if case is None else f"{case['rate']:g}"])
    return table(["placement", "train", "test", "learning rate"], rows)


def conditioning_table(directory: pathlib.Path) -> str:
    """Condition numbers and effective ranks of the last layer, before and after training."""
    found = {case["norm"]: case for case in load("conditioning", directory)["cases"]}
    rows = []
    for norm in expected_cases("conditioning"):
        cells = [MISSING] * 6
        if norm in found:
            first, last = found[norm]["history"][0], found[norm]["history"][-1]
            pairs = [(first, "condition_before"), (first, "condition_after"), (last, "condition_before")]
            pairs += [(last, "condition_after"), (last, "effective_rank_before"), (last, "effective_rank_after")]
            cells = [_range(entry[key][-1]) for entry, key in pairs]
        rows.append([norm, *cells])
    head = ["norm", "step 0, before", "step 0, after", "end, before", "end, after", "rank, before", "rank, after"]
    return table(head, rows)


def _accuracy(case: dict[str, Any] | None, metric: str) -> str:
    if case is None:
        return MISSING
    diverged = sum(case["diverged"])
    return percent(case[metric]) + (f" ({diverged} diverged)" if diverged else "")


def _error(case: dict[str, Any] | None, key: str) -> str:
    """The mean over layers, then the mean over the runs that are finite."""
    runs = [] if case is None else [float(np.mean(layers)) for layers in case[key] if layers]
    return MISSING if case is None else f"{np.mean(runs):.3g}" if runs else "diverged"


def _range(values: list[float]) -> str:
    return f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})" if values else "diverged"


EXPERIMENTS = ("batch_sizes", "groups", "iterations", "placements", "conditioning", "full_whitening")
TABLES: dict[str, tuple[str, Callable[[pathlib.Path], str]]] = {
    "batch_sizes_train": ("batch_sizes", lambda directory: batch_sizes_table(directory, "train_accuracy")),
    "batch_sizes_test": ("batch_sizes", lambda directory: batch_sizes_table(directory, "test_accuracy")),
    "learning_rates": ("batch_sizes", rates_table),
    "groups": ("groups", groups_table),
    "iterations": ("iterations", iterations_table),
    "placements": ("placements", placements_table),
    "conditioning": ("conditioning", conditioning_table),
}


def make_table(name: str, directory: pathlib.Path = DIRECTORY) -> str:
    """The table ``name``, one of ``TABLES`` or "runs"; a line that says so where its experiment has not run."""
    if name == "runs":
        return runs_table(directory)
    experiment, make = TABLES[name]
    if not (directory / f"{experiment}.json").exists():
        return f"*Not run yet: `python -m experiments.{experiment}`.*"
    return make(directory)


def fill(text: str, directory: pathlib.Path = DIRECTORY) -> str:
    """``text`` with every marked table replaced by the one of the results."""
    pattern = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: match[1] + make_table(match[2], directory) + "\n" + match[3], text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, or writes them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=DIRECTORY)
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args(arguments)
    if args.write is not None:
        args.write.write_text(fill(args.write.read_text(), args.results))
        return
    for name in ("runs", *TABLES):
        print(f"\n{name}\n\n{make_table(name, args.results)}")


if __name__ == "__main__":
    main()
