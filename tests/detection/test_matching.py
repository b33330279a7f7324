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
run = jax.jit(match, static_argnums=3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_golden(case, rule):
    """With absent ground truth that overlaps most, and more boxes that overlap nothing, in one shape for all cases."""
    arrays = golden.part(golden.load("ops/matcher"), case)
    truths, boxes = arrays["iou"].shape
    overlap = np.pad(arrays["iou"], ((0, 0), (0, 64 - boxes)))
    overlap = np.pad(overlap, ((0, 8 - truths), (0, 0)), constant_values=1.0)
    matches = run(overlap, *RULES[rule], np.arange(8) < truths)
    assert matches.dtype == jnp.int32
    np.testing.assert_array_equal(matches[:boxes], arrays[rule])


def test_all_is_present_by_default():
    arrays = golden.part(golden.load("ops/matcher"), "best_of_gt_prefers_other_gt")
    np.testing.assert_array_equal(run(arrays["iou"], 0.7, 0.3, True), arrays["rpn"])


@pytest.mark.parametrize("size", [(96, 128), (128, 96)])
def test_labels_and_targets_of_anchors(size):
    case = golden.part(golden.load("ops/matcher"), f"anchors_{size[0]}x{size[1]}")

    @jax.jit
    def matched(truth):
        grid = [anchors(-(-size[0] // STRIDES[level]), -(-size[1] // STRIDES[level]), level) for level in LEVELS]
        boxes = jnp.concatenate(grid)
        matches = match(iou(truth, boxes), 0.7, 0.3, True)
        targets = encode(truth[jnp.maximum(matches, 0)], boxes, (1, 1, 1, 1))
        return matches, visible(boxes, jnp.array(size, jnp.int32)), targets

    matches, is_visible, targets = (np.asarray(a) for a in matched(case["gt"]))
    np.testing.assert_array_equal(matches, case["matches"])
    labels = np.where(matches >= 0, 1, np.where(matches == -1, 0, -1))
    labels = np.where(is_visible, labels, -1)
    np.testing.assert_array_equal(labels, case["labels"])
    positive = np.flatnonzero(labels == 1)
    np.testing.assert_array_equal(positive, case["positive_index"])
    np.testing.assert_allclose(targets[positive], case["positive_regression_targets"], atol=2e-5)


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
