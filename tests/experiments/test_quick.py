"""Every experiment runs with ``--quick``, and its table and figure are made from the result."""

import importlib

import pytest

from experiments import figures
from experiments.results import load
from experiments.tables import EXPERIMENTS, TABLES, make_table

# All run the same code; one trains in every run of CI.
SHORT = ("iterations",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in SHORT)) for name in EXPERIMENTS]
)
def test_an_experiment_runs(name, tmp_path, quick_compilation):
    with quick_compilation():
        importlib.import_module(f"experiments.{name}").main(["--quick", f"--out={tmp_path}"])
    result = load(name, tmp_path)
    assert len(result["cases"]) >= 2
    assert all(len(case["diverged"]) == 2 for case in result["cases"])
    assert result["command"] == f"python -m experiments.{name} --quick"
    for table, (experiment, _) in TABLES.items():
        if experiment == name:
            assert make_table(table, tmp_path).count("\n") >= 2
    if name in figures.FIGURES:
        figures.main([f"--results={tmp_path}", f"--figures={tmp_path}"])
        assert (tmp_path / f"experiments_{name}.png").stat().st_size > 1000
