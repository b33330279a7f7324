"""Results as JSON: written with all that is needed to repeat them, and read again for tables and figures."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from typing import Any

import numpy as np

import gw_jax

DIRECTORY = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "mlxtend")


class Recorder:
    """Collects the cases of one experiment and writes them to ``directory/NAME.json`` after each.

    Args:
        name: the experiment.
        command: the command line that runs it.
        directory: where the file is written; it is created.
        facts: what is common to all cases, such as the number of steps.
    """

    def __init__(self, name: str, command: str, directory: pathlib.Path, **facts: Any):
        self.name, self.command, self.facts = name, command, facts
        self.path = directory / f"{name}.json"
        self.cases: list[dict[str, Any]] = []
        self.start, self.cpu_start = time.perf_counter(), time.process_time()
        self.date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, **case: Any) -> None:
        """Adds a case, prints it in one line and rewrites the file."""
        self.cases.append(case)
        shown = {key: value for key, value in case.items() if isinstance(value, int | float | str)}
        means = {key: round(float(np.mean(case[key])), 4) for key in ("train_accuracy", "test_accuracy") if key in case}
        print(self.name, {**shown, **means}, flush=True)
        versions = {package: importlib.metadata.version(package) for package in PACKAGES}
        result = {
            "experiment": self.name,
            "command": self.command,
            "date": self.date,
            "duration_seconds": round(time.perf_counter() - self.start),
            "duration_cpu_seconds": round(time.process_time() - self.cpu_start),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "versions": {"gw_jax": gw_jax.__version__, "python": platform.python_version(), **versions},
            **self.facts,
            "cases": self.cases,
        }
        text = json.dumps(result, indent=1)
        partial = self.path.with_suffix(".partial")
        partial.write_text(_lists_in_one_line(text) + "\n")
        partial.replace(self.path)


def _lists_in_one_line(text: str) -> str:
    """Joins the lines of each innermost list, so that a file is read and compared by eye."""
    import re

    return re.sub(
        r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]).replace("[ ", "[").replace(" ]", "]"), text
    )


def load(name: str, directory: pathlib.Path = DIRECTORY) -> dict[str, Any]:
    """Reads the result of the experiment ``name``.

    Raises:
        FileNotFoundError: it has not run; the message says how to run it.
    """
    path = directory / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run `python -m experiments.{name}` first.")
    return json.loads(path.read_text())
