"""Images that are refused, and integers of any type for the valid areas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.canvas import check_images
from gw_jax.detection.pooler import pool
from gw_jax.ops.valid import valid_mask

VALID = np.array([[64, 32], [32, 96]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int16, np.int64])
def test_integers_of_any_type(dtype):
    expected = valid_mask(jnp.asarray(VALID, jnp.int32), 4, 16, 24)
    np.testing.assert_array_equal(valid_mask(VALID.astype(dtype), 4, 16, 24), expected)
    assert expected.sum() == 16 * 8 + 8 * 24
    pyramid = {f"P{level}": np.ones((2, 256 >> level, 256 >> level, 1), np.float32) for level in range(2, 6)}
    boxes = np.full((2, 1, 4), [40, 0, 120, 30], np.float32)
    found = [jax.jit(lambda of=of: pool(pyramid, VALID.astype(of), boxes, 2))() for of in (dtype, np.int32)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 64, 96), np.float32), "images have shape (2, 3, 64, 96); give [n, height, width, 3]"),
        (np.zeros((0, 64, 96, 3), np.float32), "one image at least"),
    ],
)
def test_images_that_are_refused(images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_images(images, VALID)
