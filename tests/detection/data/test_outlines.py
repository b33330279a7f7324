"""Polygons around masks, and the masks of run lengths, against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from gw_jax.detection.data.outlines import outlines
from gw_jax.detection.rle import decode_mask


def masks():
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 9), (7, 1), (5, 6), (12, 9), (33, 20)]:
        for share in (0.1, 0.5, 0.9, 1.0):
            yield rng.random((height, width)) < share
    y, x = np.mgrid[:60, :80]
    disk = np.hypot(y - 30, x - 40) < 25
    yield disk
    # A ring with an island that has two holes, one below the other.
    island = (np.hypot(y - 30, x - 40) < 12) & ~((abs(x - 40) < 4) & (abs(y - 25) < 3)) & ~((x == 40) & (y > 31) & (y < 36))
    yield (disk & (np.hypot(y - 30, x - 40) > 16)) | island
    yield (y + x) % 2 == 0
    yield (y % 2 == 0) | (x % 7 == 0)
    yield np.random.default_rng(1).random((200, 150)) < 0.6


@pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: "x".join(map(str, mask.shape)))
def test_masks_survive_both_encodings_and_polygons(mask):
    height, width = mask.shape
    compressed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    compressed["counts"] = compressed["counts"].decode()
    np.testing.assert_array_equal(decode_mask(compressed, height, width), mask)
    flat = mask.T.ravel()
    runs = np.diff(np.flatnonzero(np.diff(flat.astype(int), prepend=0)), prepend=0, append=flat.size)
    np.testing.assert_array_equal(decode_mask({"size": [height, width], "counts": runs.tolist()}, height, width), mask)
    parts = outlines(mask)
    if not parts:
        assert not mask.any()
        return
    assert all(len(part) >= 6 for part in parts)
    raster = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width)))
    np.testing.assert_array_equal(raster.astype(bool), mask)


def test_holes_stay_at_other_resolutions():
    """A slit is as narrow when the polygon is enlarged, reduced or mirrored."""
    y, x = np.mgrid[:40, :40]
    ring = (np.hypot(y - 20, x - 20) < 18) & (np.hypot(y - 20, x - 20) > 7)
    (part,) = outlines(ring)
    for scale_x, scale_y in [(3, 3), (0.7, 0.7), (1.37, 2.41), (-1.37, 0.9)]:
        scaled = (np.reshape(part, (-1, 2)) * [scale_x, scale_y] + [40 * max(-scale_x, 0), 0]).ravel().tolist()
        height, width = round(40 * scale_y), round(40 * abs(scale_x))
        raster = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([scaled], height, width)))
        y, x = (np.mgrid[:height, :width] + 0.5) / np.array([scale_y, abs(scale_x)])[:, None, None]
        radius = np.hypot(y - 20.5, x - 20.5)
        clear = (abs(radius - 18) > 1.5 / min(abs(scale_x), 1)) & (abs(radius - 7) > 1.5 / min(abs(scale_x), 1))
        np.testing.assert_array_equal(raster.astype(bool)[clear], ((radius < 18) & (radius > 7))[clear])


def test_a_small_part_of_a_large_image():
    mask = np.zeros((3000, 4000), bool)
    mask[2990:, 3990:] = True
    (part,) = outlines(mask)
    assert sorted(part) == [2990, 2990, 3000, 3000, 3990, 3990, 4000, 4000]
