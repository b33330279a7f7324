import json

import pytest

from benchmarks import nms


@pytest.mark.slow
def test_every_kind_of_boxes_is_measured_beside_the_loop(capsys):
    nms.main(["--boxes=60", "--rounds=1", "--json"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [case["boxes"] for case in result["cases"]] == ["random", "random", "clustered", "clustered", "chain"]
    for case in result["cases"]:
        assert 0 < case["kept"] <= 60
        assert case["ratio_numpy"] == case["ours_ms"] / case["numpy_ms"]
    assert result["cases"][-1]["kept"] == 30
