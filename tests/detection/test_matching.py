import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.anchors import LEVELS, STRIDES, anchors, visible
from gw_jax.detection.matching import match
from gw_jax.ops.boxes import encode, iou
from tests.detection import golden

pytestmark = pytest.mark.usefixtures("strict")

CASES = ["random_quantised", "ties", "gt_without_overlap", "on_threshold", "best_of_gt_prefers_other_gt"]
RULES = {"rpn": (0.7, 0.3, True), "head": (0.5, 0.5, False), "rpn_no_low_quality": (0.7, 0.3, False)}
run = jax.jit(match, static_argnums=(1, 2, 3))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_golden(case, rule):
    arrays = golden.part(golden.load("ops/matcher"), case)
    matches = run(arrays["iou"], *RULES[rule])
    assert matches.dtype == jnp.int32
    np.testing.assert_array_equal(matches, arrays[rule])
    # Absent ground truth, whatever its overlap, changes nothing.
    overlap, present = np.pad(arrays["iou"], ((0, 3), (0, 0)), constant_values=1.0), np.arange(len(arrays["iou"]) + 3)
    np.testing.assert_array_equal(run(overlap, *RULES[rule], present < len(arrays["iou"])), arrays[rule])


@pytest.mark.parametrize("size", [(96, 128), (128, 96)])
def test_labels_and_targets_of_anchors(size):
    case = golden.part(golden.load("ops/matcher"), f"anchors_{size[0]}x{size[1]}")
    grid = [anchors(-(-size[0] // STRIDES[level]), -(-size[1] // STRIDES[level]), level) for level in LEVELS]
    boxes = jnp.concatenate(grid)
    matches = np.asarray(jax.jit(lambda gt, boxes: match(iou(gt, boxes), 0.7, 0.3, True))(case["gt"], boxes))
    np.testing.assert_array_equal(matches, case["matches"])
    labels = np.where(matches >= 0, 1, np.where(matches == -1, 0, -1))
    labels = np.where(visible(boxes, jnp.array(size, jnp.int32)), labels, -1)
    np.testing.assert_array_equal(labels, case["labels"])
    positive = np.flatnonzero(labels == 1)
    np.testing.assert_array_equal(positive, case["positive_index"])
    targets = jax.jit(encode, static_argnums=2)(case["gt"][matches[positive]], boxes[positive], (1, 1, 1, 1))
    np.testing.assert_allclose(targets, case["positive_regression_targets"], atol=2e-5)


@pytest.mark.parametrize("truths", [0, 3])
def test_without_ground_truth_all_are_negative(truths):
    overlap, present = np.full((truths, 4), 0.9, np.float32), np.zeros(truths, bool)
    np.testing.assert_array_equal(run(overlap, 0.7, 0.3, True, present), [-1] * 4)


def test_nan_matches_nothing():
    overlap = np.array([[0.9, np.nan, 0.1], [np.nan, np.nan, 0.8]], np.float32)
    np.testing.assert_array_equal(run(overlap, 0.7, 0.3, True), [0, -1, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: match(jnp.zeros((1, 2, 3)), 0.7, 0.3, True), ValueError, "jax.vmap"),
        (lambda: match(jnp.zeros((2, 3)), 0.3, 0.7, True), ValueError, "low=0.7 is above high=0.3"),
        (lambda: match(jnp.zeros((2, 3), int), 0.7, 0.3, True), TypeError, "int32"),
        (lambda: match(jnp.zeros((2, 3)), 0.7, 0.3, True, jnp.ones(3, bool)), ValueError, r"present of shape \(3,\)"),
        (lambda: match(jnp.zeros((2, 3)), 0.7, 0.3, True, jnp.ones(2)), TypeError, "present of type float32"),
    ],
)
def test_misuse(call, error, message):
    with pytest.raises(error, match=message):
        call()
