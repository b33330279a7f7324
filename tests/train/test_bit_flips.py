"""A flipped bit in a checkpoint never changes a number, and never ends a run that has an older checkpoint."""

import pytest

from tests.train.bit_flips import flip_repeatedly


@pytest.mark.slow
@pytest.mark.parametrize("flips", [8, pytest.param(50, marks=pytest.mark.long)])
def test_random_flips_change_no_number(tmp_path, flips):
    report = flip_repeatedly(flips, seed=flips, directory=tmp_path)
    assert not report.failures
    assert report.outcomes.total() == flips
    # Most bits matter, and their damage is seen.
    assert any(outcome.endswith("newest checkpoint: set aside") for outcome in report.outcomes)
