"""Packages that do not fit each other are named, with what to do."""

import os
import pathlib

import pytest

from gw_jax.doctor.devices import not_writable, unused_accelerators
from gw_jax.doctor.environment import mismatches
from gw_jax.doctor.report import Report

REQUIREMENTS = [
    "jaxlib<=0.10.2,>=0.10.2",
    "numpy>=2",
    'jaxlib==0.9.0; extra == "minimum-jaxlib"',
    "jax-cuda12-plugin==0.10.2",
]
GOOD = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"}
CUDA = {"jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}


@pytest.mark.parametrize("versions", [GOOD, GOOD | CUDA, GOOD | {"jaxlib": "0.10.2.dev20260101"}])
def test_versions_that_fit(versions):
    assert mismatches(versions.get, REQUIREMENTS) == []


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        # Colab after pip has replaced jax and left the plugin.
        (
            {"jax-cuda12-plugin": "0.7.2", "jax-cuda12-pjrt": "0.7.2"},
            ["jax-cuda12-plugin 0.7.2 does not fit jaxlib 0.10.2", "jax[cuda12]==0.10.2", "Disconnect and delete runtime"],
        ),
        ({"jaxlib": "0.9.0"}, ["jaxlib 0.9.0 does not fit jax 0.10.2", "jaxlib<=0.10.2,>=0.10.2"]),
        ({"jax-cuda13-plugin": "0.10.2"}, ["jax-cuda13-pjrt is not installed"]),
        ({"flax": None}, ["flax is not installed"]),
        ({"jaxlib": None}, ["jaxlib is not installed"]),
    ],
)
def test_versions_that_do_not_fit(change, texts):
    found = mismatches((GOOD | change).get, REQUIREMENTS)
    assert found
    for text in texts:
        assert any(text in problem for problem in found), found


def test_a_gpu_that_jax_does_not_use_is_named(tmp_path):
    assert unused_accelerators(tmp_path) == []
    (tmp_path / "nvidia0").touch()
    (problem,) = unused_accelerators(tmp_path)
    assert "NVIDIA GPU" in problem


def test_directories_need_not_exist_but_have_to_be_writable(tmp_path, monkeypatch):
    assert not_writable(tmp_path / "a" / "b") is None
    (tmp_path / "file").touch()
    assert "is no directory" in not_writable(tmp_path / "file" / "sets")
    # Root may write everywhere, so permissions are pretended.
    monkeypatch.setattr(os, "access", lambda path, mode: pathlib.Path(path) != tmp_path)
    assert "not writable" in not_writable(tmp_path / "sets")


def test_a_section_that_fails_is_a_problem_and_not_the_end(capsys):
    report = Report(plain=True)

    def broken(section):
        section.add("label", "value")
        raise SystemExit("a package that ends Python")

    report.run("First", broken)
    report.run("Second", lambda section: section.add("fine", 1))
    assert report.finish() == 1
    printed = capsys.readouterr().out
    assert "First could not be checked: SystemExit: a package that ends Python" in printed
    assert "fine" in printed
    assert "1 problem\n" in printed
