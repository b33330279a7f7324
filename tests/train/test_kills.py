"""Runs with reading workers that are killed at any moment end with the numbers of an undisturbed one."""

import pytest

from tests.train.kills import KINDS, kill_repeatedly


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path, data_dir):
    report = kill_repeatedly(10, 0, tmp_path, data_dir)
    assert not report.differences
    assert report.kills.total() >= 10
    assert report.kills.keys() == set(KINDS)
    assert report.runs >= 1
