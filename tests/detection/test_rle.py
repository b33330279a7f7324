import numpy as np
import pytest

pycocotools_mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed; extra detection")

from gw_jax.detection.paste import paste_mask, paste_region  # noqa: E402
from gw_jax.detection.rle import decode_mask, encode_region, encode_uncompressed  # noqa: E402


def encoded(mask):
    runs = pycocotools_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def regions():
    rng = np.random.default_rng(0)
    yield np.ones((7, 9), bool), 0, 0  # the whole image: one run over all columns
    yield np.zeros((7, 9), bool), 0, 0
    yield np.ones((7, 3), bool), 0, 4
    yield np.ones((2, 2), bool), 5, 7  # the last pixel
    yield np.ones((1, 1), bool), 0, 0
    yield np.zeros((0, 3), bool), 3, 3
    for _ in range(50):
        height, width = rng.integers(1, 8), rng.integers(1, 10)
        yield rng.uniform(size=(height, width)) < 0.6, rng.integers(0, 8 - height), rng.integers(0, 10 - width)


def test_regions_are_encoded_as_by_pycocotools():
    for region, top, left in regions():
        whole = np.zeros((7, 9), bool)
        rows, columns = slice(top, top + region.shape[0]), slice(left, left + region.shape[1])
        whole[rows, columns] = region
        assert encode_region(region, rows, columns, (7, 9)) == encoded(whole)
        uncompressed = pycocotools_mask.frPyObjects(encode_uncompressed(whole), 7, 9)
        assert uncompressed["counts"].decode() == encoded(whole)["counts"]


def test_pasted_masks_are_encoded_as_by_pycocotools():
    rng = np.random.default_rng(1)
    for box in ([3, 4, 30, 20], [-20, -10, 10, 90], [-9, -9, -5, -5], [50, 2, 300, 3], [10, 10, 5, 5]):
        probability = rng.uniform(size=(28, 28))
        expected = encoded(paste_mask(probability, box, (40, 60)))
        assert encode_region(*paste_region(probability, box, (40, 60)), (40, 60)) == expected


def test_large_numbers_and_long_runs():
    mask = np.zeros((3000, 4000), bool)
    mask[2990:, 3990:] = True
    np.testing.assert_array_equal(decode_mask(encoded(mask), 3000, 4000), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 6], "counts": [24]}, r"an RLE of size \[4, 6\], where the image has \[4, 5\]"),
        ({"size": [5, 4], "counts": [20]}, r"an RLE of size \[5, 4\]"),
        ({"counts": [20]}, "an RLE of size None"),
        ({"size": [4, 5], "counts": [19]}, "whose counts do not sum up to 4 x 5 pixels"),
        ({"size": [4, 5], "counts": [21]}, "'counts' are neither"),
        ({"size": [4, 5], "counts": [-1, 21]}, "'counts' are neither"),
        ({"size": [4, 5], "counts": [5, 10**30]}, "'counts' are neither"),
        ({"size": [4, 5], "counts": [20.0]}, "'counts' are neither"),
        ({"size": [4, 5], "counts": None}, "'counts' are neither"),
        ({"size": [4, 5], "counts": ""}, "do not sum up"),
        ({"size": [4, 5], "counts": "e0"}, "do not sum up"),
        ({"size": [4, 5], "counts": "\u00ff"}, "do not sum up"),
        ({"size": [4, 5], "counts": "d"}, "no compressed numbers"),
        ({"size": [4, 5], "counts": "oooooooooooooooooo0"}, "no compressed numbers"),
        ({"size": [4, 5], "counts": " "}, "no compressed numbers"),
    ],
)
def test_damaged_masks_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_mask(segmentation, 4, 5)
