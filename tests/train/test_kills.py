"""Runs with reading workers that are killed at any moment end with the numbers of an undisturbed one."""

import pytest

from tests.train.kills import KINDS, kill_repeatedly


@pytest.mark.slow
@pytest.mark.long  # test_loop.py kills at chosen moments.
@pytest.mark.parametrize("kills", [5, 10])
def test_kills_change_nothing(tmp_path, data_dir, kills):
    report = kill_repeatedly(kills, 0, tmp_path, data_dir)
    assert not report.differences
    assert report.kills.total() >= kills
    assert report.kills.keys() == set(KINDS)
    assert report.runs >= 1
