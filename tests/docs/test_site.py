"""The site: it builds without a warning and fetches nothing; links of README and pages lead to files; the figures."""

import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from tests.docs.blocks import PAGES, ROOT, identify

_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_lead_to_files_of_the_repository(page):
    """As a code host resolves them, which shows a page that is a link as text."""
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        path = page.resolve().parent / target
        assert path.exists(), target
        assert path.resolve().is_relative_to(ROOT), target


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    built = {path.relative_to(tmp_path).with_suffix(".md").as_posix() for path in tmp_path.rglob("*.html")}
    assert {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.parent != ROOT} <= built
    for path in tmp_path.rglob("*.html"):
        content = path.read_text()
        assert not re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//', content), path
        assert not re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(?:https?:)?//', content), path
    text = (tmp_path / "api" / "gw_jax.html").read_text()
    assert "group_whiten" in text
    assert ":func:" not in text
    # A link to a file outside docs/ leads to its copy.
    (linked,) = re.findall(r'href="([^"]*train_step_h100_2026-11-26.json)"', (tmp_path / "performance.html").read_text())
    assert (tmp_path / linked).read_bytes() == (ROOT / "benchmarks/results/train_step_h100_2026-11-26.json").read_bytes()


@pytest.mark.slow
def test_the_figure_of_the_readme_shows_whitening():
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "whitening.py"))
    before = script["make_sample"]()
    after = script["whitened"](before)
    off_diagonal = []
    for x in (before, after):
        covariance = script["covariance"](x)
        deviation = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(deviation, deviation)
        off_diagonal.append(np.abs(correlation - np.eye(len(correlation))).max())
    assert off_diagonal[0] > 0.7
    assert off_diagonal[1] < 0.25
    assert len(script["draw"](before, after).subfigs) == 2
    assert pathlib.Path(ROOT / "docs/figures/whitening.png").stat().st_size < 300_000
