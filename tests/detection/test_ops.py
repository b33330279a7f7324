"""The pinned operations on the arrays that users have: lists and NumPy arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection import ops

BOXES = np.array([[2.0, 3, 20, 30], [4, 3, 22, 30], [40, 10, 60, 28]], np.float32)
SCORES = np.array([0.5, 0.75, 0.25], np.float32)
FEATURES = np.arange(16 * 16 * 2, dtype=np.float32).reshape(16, 16, 2)
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]
CALLS = {
    "encode": lambda of: ops.encode(of(BOXES), of(BOXES[::-1]), [10, 10, 5, 5]),
    "decode": lambda of: ops.decode(of(np.zeros((3, 8), np.float32)), of(BOXES), (10.0, 10.0, 5.0, 5.0)),
    "iou": lambda of: ops.iou(of(BOXES), of(BOXES[:2])),
    "level_of": lambda of: ops.level_of(of(BOXES)),
    "nms": lambda of: ops.nms(of(BOXES), of(SCORES), 0.5, of(np.array([True, True, False]))),
    "roi_align": lambda of: ops.roi_align(of(FEATURES), of(BOXES), 0.25, 7, (12, 16)),
    "match": lambda of: ops.match(of(np.eye(3, dtype=np.float32)), 0.7, 0.3, True, of(np.array([True, False, True]))),
    "mask_targets": lambda of: ops.mask_targets([SQUARE] * 3, of(BOXES), 14),
    "paste_mask": lambda of: ops.paste_mask(of(np.ones((28, 28), np.float32)), of(BOXES[0]), (40, 40), 0.3),
}


def test_every_operation_is_called():
    assert sorted(CALLS) == ops.__all__


def test_no_boxes():
    none, codes = np.zeros((0, 4), np.float32), np.zeros((0, 8), np.float32)
    assert ops.encode(none, none, (1, 1, 1, 1)).shape == (0, 4)
    assert ops.decode(codes, none, (1, 1, 1, 1)).shape == (0, 8)
    assert ops.iou(none, BOXES).shape == (0, 3)
    assert ops.nms(none, np.zeros(0, np.float32), 0.5).shape == (0,)
    assert ops.roi_align(FEATURES, none, 0.25, 7).shape == (0, 7, 7, 2)
    assert ops.mask_targets([], none).shape == (0, 28, 28)


@pytest.mark.parametrize("name", CALLS)
def test_lists_and_numpy_give_what_arrays_give(name):
    expected = np.asarray(CALLS[name](jnp.asarray))
    for kind in (np.asarray, np.ndarray.tolist):
        found = np.asarray(CALLS[name](kind))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
