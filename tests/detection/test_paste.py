import numpy as np
import pytest

from gw_jax.detection import paste
from gw_jax.detection.paste import paste_mask
from tests.detection.golden import load, part, unpack


def golden():
    data = part(load("ops/masks"), "paste")
    width, height = data["image_wh"].tolist()
    return data, (height, width)


def test_golden_masks_are_equal():
    data, size = golden()
    for probability, box, expected in zip(data["prob28"], data["boxes"], unpack(data["masks"], *size), strict=True):
        mask = paste_mask(probability, box, size)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, expected)


def test_golden_probabilities_are_equal():
    """The resized probabilities times 255, truncated."""
    data, size = golden()
    for probability, box, expected in zip(data["prob28"], data["boxes"], data["soft_uint8"], strict=True):
        mask, rows, columns = paste._taps(probability, box, size)
        pixels = paste._interpolated(mask, rows, slice(None), columns)
        image = np.zeros(size, np.uint8)
        image[rows.inside, columns.inside] = (pixels * np.float32(255)).astype(np.uint8)
        np.testing.assert_array_equal(image, expected)


def test_golden_masks_of_detections():
    """Many probabilities are close to 0.5, and boxes and masks are stored after rounding: a pixel may differ."""
    data = load("end_to_end/config9")
    for name in ("image0", "image1"):
        image = part(data, name)
        size = image["rgb_uint8_hwc"].shape[:2]
        expected = unpack(image["pasted_masks_packed"], *size)
        for probability, box, mask in zip(image["mask_prob"], image["boxes"], expected, strict=True):
            assert (paste_mask(probability, box, size) != mask).sum() <= 3


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([-50, -50, -20, -20], 0),  # outside
        ([200, 3, 260, 30], 0),
        ([9, 9, 5, 5], 0),  # inverted
        ([3, 3, 3, 3], 1),  # without a size
        ([-1e30, -1e30, 1e30, 1e30], 40 * 30),
        ([-5, -5, 4, 4], 25),
    ],
)
def test_boxes_outside_of_the_image_and_without_a_size(box, pixels):
    assert paste_mask(np.ones((28, 28)), box, (30, 40)).sum() == pixels


def test_only_the_image_is_computed():
    """A box of a million pixels a side would need terabytes."""
    mask = paste_mask(np.full((28, 28), 0.9), [-5e5, -5e5, 5e5, 5e5], (10, 10))
    assert mask.all()


def test_a_large_mask_is_pasted_in_parts(monkeypatch):
    probability = np.random.default_rng(0).uniform(size=(28, 28))
    whole = paste_mask(probability, [3.5, -4, 61, 52.5], (60, 70))
    monkeypatch.setattr(paste, "_PIXELS_AT_A_TIME", 200)
    np.testing.assert_array_equal(paste_mask(probability, [3.5, -4, 61, 52.5], (60, 70)), whole)


def test_threshold_is_exceeded():
    half = np.full((28, 28), 0.5)
    assert not paste_mask(half, [0, 0, 9, 9], (10, 10)).any()
    assert paste_mask(half, [0, 0, 9, 9], (10, 10), threshold=0.49).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": np.ones((28, 14))}, r"a mask of shape \(28, 14\); a square one"),
        ({"probability": np.ones((0, 0))}, "square"),
        ({"box": [0, 0, np.nan, 9]}, r"the box \[0.0, 0.0, nan, 9.0\]; four finite numbers"),
        ({"box": [0, 0, 9]}, "four finite numbers"),
        ({"size": (0, 9)}, "height=0; it must be 1 or more"),
        ({"size": (9, 9.5)}, "width=9.5 is a float"),
        ({"size": (9, 9, 3)}, r"\(height, width\) of the image"),
        ({"threshold": float("nan")}, "threshold=nan; a probability is needed"),
        ({"threshold": 128}, "0 to 1"),
    ],
)
def test_errors_say_what_is_allowed(change, message):
    call = {"probability": np.ones((28, 28)), "box": [0, 0, 9, 9], "size": (10, 10)}
    with pytest.raises(ValueError, match=message):
        paste_mask(**(call | change))
