"""Of two runs that are started at once on one work directory, one is refused and the other one ends undisturbed."""

import sys

import pytest

from tests.train.pairs import run_pairs


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pauses a process by a signal that Windows does not have")
@pytest.mark.long
def test_one_of_each_pair_is_refused(tmp_path):
    assert not run_pairs(2, tmp_path)
