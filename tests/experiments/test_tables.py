"""The tables of the page are those of the results, and the numbers in them are computed rightly."""

import pathlib

import numpy as np
import pytest

from experiments.results import DIRECTORY, Recorder, load
from experiments.summary import distance_to_largest, first_fall, percent
from experiments.tables import EXPERIMENTS, TABLES, fill, make_table

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "experiments.md"


def test_the_page_has_the_tables_of_the_results():
    text = PAGE.read_text()
    assert fill(text) == text
    for name in ("runs", *TABLES):
        assert f"<!-- table: {name} -->" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_reported_run_has_the_seed_of_the_grid(name):
    if not (DIRECTORY / f"{name}.json").exists():
        assert "not run" in make_table("runs").lower()
        return
    result = load(name)
    assert result["grid_seed"] not in result["seeds"]
    assert len(result["seeds"]) >= 5
    for case in result["cases"]:
        assert len(case["diverged"]) == len(result["seeds"])
        assert case["rate"] in result["rates"]


def test_the_spread_is_the_sample_standard_deviation():
    assert percent([0.5, 0.7]) == "60.0 ± 14.1"
    assert percent([0.5]) == "50.0 ± 0.0"


def test_the_distance_is_paired_by_seed():
    mean, deviation = distance_to_largest({2: {"a": [0.5, 0.6]}, 256: {"a": [0.9, 0.9]}}, "a")
    np.testing.assert_allclose([mean, deviation], [-0.35, np.sqrt(0.005)])
    assert distance_to_largest({2: {"a": [0.5]}}, "a") is None


@pytest.mark.parametrize(
    ("means", "fall"), [((0.9, 0.91, 0.9), None), ((0.9, 0.8, 0.5), 2), ((0.5, 0.9, 0.8), 4), ((0.9, 0.8, 0.9), None)]
)
def test_a_fall_lasts_to_the_largest_group_number(means, fall):
    cases = [{"groups": groups, "a": [mean]} for groups, mean in zip((1, 2, 4), means, strict=True)]
    assert first_fall(cases, "a") == fall


def test_a_result_says_how_to_repeat_it(tmp_path):
    recorder = Recorder("name", "python -m experiments.name", tmp_path, steps=3)
    recorder.add(norm="BN", test_accuracy=[0.5, 0.75])
    result = load("name", tmp_path)
    assert result["command"] == "python -m experiments.name"
    assert result["cases"] == [{"norm": "BN", "test_accuracy": [0.5, 0.75]}]
    assert {"date", "versions", "duration_seconds", "duration_cpu_seconds", "cpus", "steps"} <= set(result)
    with pytest.raises(FileNotFoundError, match=r"experiments\.groups"):
        load("groups", tmp_path)
