"""Damaged files at random; ``python -m tests.convert.mutate`` converts thousands."""

import pytest

from tests.convert.mutate import FAULTS, run


def assert_no_fault(count, seed):
    lines = []
    figures = run(count, seed, show=lines.append)
    assert not any(figures[fault] for fault in FAULTS), "\n".join(lines)
    assert figures["files"] == count
    assert figures["refused"] > count // 3
    assert figures["converted"] > count // 20


@pytest.mark.slow
def test_damaged_files(torch):
    assert_no_fault(250, seed=2)
