"""The recipe of the golden weights, and the helpers that the other tests rely on."""

import numpy as np
import pytest

from tests.detection import golden


def test_weights_of_a_file():
    arrays = golden.load("end_to_end/config1")
    state = golden.state_of(arrays, 1, prefix="r")
    name = "rpn.head.bbox_pred.weight"
    plain = golden.state(1, int(arrays["weight_seed"]), prefix="rpn.head")[name]
    np.testing.assert_allclose(state[name], 0.3 * plain.astype(float), rtol=1e-6)
    assert np.abs(state[name]).max() > 0
    bias = "roi_heads.box.predictor.cls_score.bias"
    np.testing.assert_array_equal(state[bias], arrays[f"override.{bias}"])
    np.testing.assert_array_equal(state["rpn.anchor_generator.cell_anchors.0"][1], [-14, -14, 17, 17])
    assert list(state) == [entry["name"] for entry in golden.keys(1)["entries"] if entry["name"].startswith("r")]


def test_names_of_multipliers_exist():
    with pytest.raises(AssertionError):
        golden.state(1, 0, multipliers={"no.such.weight": 2.0})


def test_masks_unpack():
    masks = golden.load("ops/masks")
    areas = golden.unpack(masks["target.masks28"], 28, 28).sum((1, 2))
    np.testing.assert_array_equal(areas, masks["target.area"])
