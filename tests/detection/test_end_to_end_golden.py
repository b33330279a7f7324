"""Whole detectors of the published code: from its proposals, and from pixels."""

import jax
import numpy as np
import pytest
from flax import nnx

from gw_jax.detection.paste import paste_mask
from tests.detection import golden
from tests.detection.detectors import batch, matches, of_file

pytestmark = pytest.mark.slow  # Networks of full size.

CONFIGS = (1, 3, *(pytest.param(config, marks=pytest.mark.long) for config in (6, 9)))
NUM_PROPOSALS = 1000
CANVAS = (288, 288)


@nnx.jit
def first_half(detector, images, valid, sizes):
    pyramid = detector.pyramid(images, valid)
    return pyramid, *detector.propose(pyramid, valid, sizes)


@nnx.jit
def second_half(detector, pyramid, valid, sizes, boxes, present):
    return detector.classify(pyramid, valid, boxes), detector.detect_in(pyramid, valid, sizes, boxes, present)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    """The detector, the pyramid, and for both images what is expected and what both halves find.

    The reference saw each image by itself, in its own padding. Here both are in one canvas.
    """
    arrays = golden.load(f"end_to_end/config{request.param}")
    detector = of_file(arrays, request.param)
    expected = [golden.part(arrays, name) for name in ("image0", "image1")]
    images, valid, sizes = batch([golden.normalised(image["rgb_uint8_hwc"]) for image in expected], *CANVAS)
    np.testing.assert_array_equal(valid, [image["padded_hw"] for image in expected])
    pyramid, *proposals = jax.device_get(first_half(detector, images, valid, sizes))
    counts = np.array([len(image["proposals"]) for image in expected])
    stored = [np.pad(image["proposals"], ((0, NUM_PROPOSALS - len(image["proposals"])), (0, 0))) for image in expected]
    present = np.arange(NUM_PROPOSALS) < counts[:, None]
    predictions, detections = second_half(detector, pyramid, valid, sizes, np.stack(stored), present)
    _, from_pixels = second_half(detector, pyramid, valid, sizes, proposals[0], proposals[2])
    return detector, pyramid, valid, expected, jax.device_get((proposals, predictions, detections, from_pixels))


@pytest.fixture(params=(0, 1))
def found(request, case):
    """What is expected of one image, and what was found."""
    *_, expected, results = case
    return expected[request.param], *jax.tree.map(lambda leaf: leaf[request.param], results)


def check_detections(found, expected, box_tolerance, score_tolerance, mask_tolerance):
    """The same set of detections."""
    count = len(expected["boxes"])
    assert found.present.sum() == count
    index, distance = matches(found.boxes[:count], found.labels[:count], expected["boxes"], expected["labels"])
    assert sorted(index) == list(range(count))
    assert distance.max() <= box_tolerance
    assert np.abs(found.scores[index] - expected["scores"]).max() <= score_tolerance
    assert not found.boxes[count:].any()
    assert (found.masks is not None) == ("mask_prob" in expected)
    if found.masks is not None:
        assert np.abs(found.masks[index] - expected["mask_prob"]).max() <= mask_tolerance


def test_proposals(found):
    expected, (boxes, scores, present), *_ = found
    boxes, scores = boxes[present], scores[present]
    assert (np.diff(scores) <= 0).all()
    assert abs(len(boxes) - len(expected["proposals"])) <= 5
    distance = np.abs(boxes[:, None] - expected["proposals"][None]).max(-1).min(0)
    assert (distance <= 5e-2).mean() >= 0.995
    # The last ones may differ.
    np.testing.assert_allclose(scores[:900], np.sort(expected["proposal_scores"])[::-1][:900], atol=1e-3)


def test_from_stored_proposals(found):
    expected, _, (logits, deltas), detections, _ = found
    np.testing.assert_allclose(logits[:64], expected["class_logits_first64"], atol=2e-3)
    np.testing.assert_allclose(deltas[:64], expected["box_deltas_first64"], atol=2e-3)
    check_detections(detections, expected, 1e-2, 2e-4, 1e-3)


def test_from_pixels(found):
    expected, *_, from_pixels = found
    check_detections(from_pixels, expected, 5e-2, 1e-3, 1e-2)


@pytest.mark.parametrize("case", [9], indirect=True)
@pytest.mark.long
def test_pasted_masks(found):
    expected, *_, detections, _ = found
    height, width = expected["rgb_uint8_hwc"].shape[:2]
    count = len(expected["boxes"])
    index, _ = matches(detections.boxes[:count], detections.labels[:count], expected["boxes"], expected["labels"])
    masks = golden.unpack(expected["pasted_masks_packed"], height, width)
    assert masks.any()
    for row, mask in zip(index, masks, strict=True):
        pasted = paste_mask(detections.masks[row], detections.boxes[row], (height, width))
        # Many probabilities are close to the threshold.
        assert (pasted != mask).mean() <= 0.01


@pytest.mark.parametrize("case", [6], indirect=True)
@pytest.mark.long
def test_a_relu_after_every_convolution_is_caught(case):
    detector, pyramid, valid, expected, _ = case
    wrong = nnx.clone(detector)
    wrong.box_head.conv_relu = "each"
    boxes = np.stack([image["proposals"][:64] for image in expected])
    logits, _ = nnx.jit(lambda detector, *arguments: detector.classify(*arguments))(wrong, pyramid, valid, boxes)
    assert np.abs(logits[0] - expected[0]["class_logits_first64"]).max() > 1
