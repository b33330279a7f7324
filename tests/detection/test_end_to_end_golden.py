"""Whole detectors of the published code: from its proposals, and from pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gw_jax.detection.paste import paste_mask
from tests.detection import golden
from tests.detection.detectors import batch, matches, of_file

pytestmark = pytest.mark.slow  # Networks of full size.

CONFIGS = (1, 3, 6, 9)
NUM_PROPOSALS = 1000


@nnx.jit
def first_half(detector, images, valid, sizes):
    pyramid = detector.pyramid(images, valid)
    return pyramid, *detector.propose(pyramid, valid, sizes)


@nnx.jit
def second_half(detector, pyramid, valid, sizes, boxes, present):
    return detector.classify(pyramid, valid, boxes), detector.detect_in(pyramid, valid, sizes, boxes, present)


def padded(rows, count):
    """``rows`` ``[k, ...]`` as ``[1, count, ...]``, and which of them are present."""
    present = np.arange(count) < len(rows)
    rows = np.pad(rows, [(0, count - len(rows)), *[(0, 0)] * (rows.ndim - 1)])
    return jnp.asarray(rows[None]), jnp.asarray(present[None])


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    arrays = golden.load(f"end_to_end/config{request.param}")
    return of_file(arrays, request.param), arrays


@pytest.fixture(scope="module", params=("image0", "image1"))
def run(request, case):
    """The expected arrays of an image, the inputs of the second half, and what both halves find."""
    detector, arrays = case
    expected = golden.part(arrays, request.param)
    image = golden.normalised(expected["rgb_uint8_hwc"])
    inputs = batch([image], *(int(edge) for edge in expected["padded_hw"]))
    pyramid, *proposals = jax.device_get(first_half(detector, *inputs))
    stored = padded(expected["proposals"], NUM_PROPOSALS)
    (logits, deltas), detections = jax.device_get(second_half(detector, pyramid, *inputs[1:], *stored))
    from_pixels = jax.device_get(second_half(detector, pyramid, *inputs[1:], proposals[0], proposals[2])[1])
    return expected, (pyramid, inputs[1]), (proposals, logits, deltas, detections, from_pixels)


def check_detections(found, expected, box_tolerance, score_tolerance, mask_tolerance):
    """The same set of detections."""
    count = len(expected["boxes"])
    assert found.present[0].sum() == count
    index, distance = matches(found.boxes[0, :count], found.labels[0, :count], expected["boxes"], expected["labels"])
    assert sorted(index) == list(range(count))
    assert distance.max() <= box_tolerance
    assert np.abs(found.scores[0][index] - expected["scores"]).max() <= score_tolerance
    assert not found.boxes[0, count:].any()
    assert (found.masks is not None) == ("mask_prob" in expected)
    if found.masks is not None:
        assert np.abs(found.masks[0][index] - expected["mask_prob"]).max() <= mask_tolerance


def test_proposals(run):
    expected, _, ((boxes, scores, present), *_) = run
    boxes, scores = boxes[0][present[0]], scores[0][present[0]]
    assert (np.diff(scores) <= 0).all()
    assert abs(len(boxes) - len(expected["proposals"])) <= 5
    distance = np.abs(boxes[:, None] - expected["proposals"][None]).max(-1).min(0)
    assert (distance <= 5e-2).mean() >= 0.995
    np.testing.assert_allclose(np.sort(scores)[::-1][:900], np.sort(expected["proposal_scores"])[::-1][:900], atol=1e-3)


def test_from_stored_proposals(run):
    expected, _, (_, logits, deltas, detections, _) = run
    np.testing.assert_allclose(logits[0, :64], expected["class_logits_first64"], atol=2e-3)
    np.testing.assert_allclose(deltas[0, :64], expected["box_deltas_first64"], atol=2e-3)
    check_detections(detections, expected, 1e-2, 2e-4, 1e-3)


def test_from_pixels(run):
    expected, _, (*_, from_pixels) = run
    check_detections(from_pixels, expected, 5e-2, 1e-3, 1e-2)


@pytest.mark.parametrize(("case", "run"), [(9, "image0"), (9, "image1")], indirect=True)
def test_pasted_masks(run):
    expected, _, (*_, detections, _) = run
    height, width = expected["rgb_uint8_hwc"].shape[:2]
    count = len(expected["boxes"])
    index, _ = matches(detections.boxes[0, :count], detections.labels[0, :count], expected["boxes"], expected["labels"])
    masks = golden.unpack(expected["pasted_masks_packed"], height, width)
    assert masks.any()
    for row, mask in zip(index, masks, strict=True):
        found = paste_mask(detections.masks[0][row], detections.boxes[0][row], (height, width))
        # Many probabilities are close to the threshold.
        assert (found != mask).mean() <= 0.01


@pytest.mark.parametrize(("case", "run"), [(6, "image0")], indirect=True)
def test_a_relu_after_every_convolution_is_caught(case, run):
    expected, (pyramid, valid), _ = run
    wrong = nnx.clone(case[0])
    wrong.box_head.conv_relu = "each"
    boxes = jnp.asarray(expected["proposals"][None, :64])
    logits, _ = nnx.jit(lambda detector, *arguments: detector.classify(*arguments))(wrong, pyramid, valid, boxes)
    assert np.abs(logits[0] - expected["class_logits_first64"]).max() > 1
