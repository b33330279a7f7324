"""Masks of valid areas."""

import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.ops.valid import select_valid, valid_mask


@pytest.mark.parametrize("stride", [1, 4, 32, 64])
def test_positions_inside_rounded_up(stride):
    sizes = np.array([[32, 96], [64, 64], [96, 32]], np.int32)
    height, width = -(-96 // stride), -(-128 // stride)
    mask = np.asarray(valid_mask(jnp.asarray(sizes), stride, height, width))
    assert mask.dtype == bool
    for image, (rows, columns) in zip(mask, sizes, strict=True):
        expected = np.zeros((height, width), bool)
        expected[: -(-rows // stride), : -(-columns // stride)] = True
        np.testing.assert_array_equal(image, expected)


def test_nan_outside_is_selected_away():
    x = jnp.full((1, 1, 2, 3), jnp.nan).at[0, 0, 0].set(2.0)
    np.testing.assert_array_equal(select_valid(x, jnp.array([[[True, False]]])), [[[[2.0] * 3, [0.0] * 3]]])
    assert select_valid(x, None) is x


@pytest.mark.parametrize(("valid", "message"), [(jnp.ones((2, 2)), "float32"), (jnp.ones(2, int), r"shape \(2,\)")])
def test_other_shapes_and_types_are_named(valid, message):
    with pytest.raises(ValueError, match=f"valid is of type .*{message}.* give integers"):
        valid_mask(valid, 4, 8, 8)
