import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.levels import level_of
from tests.detection.golden import load


def test_golden_levels():
    data = load("ops/level_assignment")
    assert set(data["level"]) == {2, 3, 4, 5}
    levels = jax.jit(level_of)(data["boxes"])
    assert levels.dtype == jnp.int32
    np.testing.assert_array_equal(levels, data["level"])


def test_sides_at_which_the_level_changes():
    sides = np.array([111, 112, 223, 224, 447, 448], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides - 1, sides - 1], -1)
    np.testing.assert_array_equal(jax.jit(level_of)(boxes), [2, 3, 3, 4, 4, 5])


def test_rounding_is_that_of_the_formula_in_float32():
    """Areas next to those at which the level changes, by the formula with correctly rounded steps."""
    f32 = np.float32
    for side in (111.999776, 223.999776, 447.999776):  # Those at which sqrt(area) / 224 + 1e-6 is a power of two.
        around = f32(side) + np.arange(-200, 200, dtype=f32) * np.spacing(f32(side))
        boxes = np.stack([0 * around, 0 * around, around - 1, around - 1], -1)
        area = (boxes[:, 2] + f32(1)) * (boxes[:, 3] + f32(1))
        x = np.sqrt(area) / f32(224) + f32(1e-6)
        logarithm = np.log2(x.astype(np.float64)).astype(f32)
        expected = np.clip(np.floor(f32(4) + logarithm), 2, 5)
        assert len(set(expected)) == 2
        np.testing.assert_array_equal(jax.jit(level_of)(boxes), expected)


def test_boxes_of_any_leading_shape_without_area_or_nan():
    boxes = jnp.array([[[9.0, 9.0, 8.0, 8.0], [0.0, 0.0, -900.0, -900.0]], [[jnp.nan] * 4, [0.0, 0.0, 999.0, 999.0]]])
    np.testing.assert_array_equal(jax.jit(level_of)(boxes), [[2, 2], [2, 5]])


def test_errors():
    with pytest.raises(ValueError, match=r"boxes of shape \(3, 5\); \[..., 4\]"):
        level_of(jnp.ones((3, 5)))
    with pytest.raises(TypeError, match="type int32"):
        level_of(jnp.ones((3, 4), jnp.int32))
