import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.augment.geometry import normalise, random_flip, random_shift


def digits(count=256, size=8):
    return np.random.default_rng(0).integers(1, 256, (count, size, size, 1), dtype=np.uint8)


def test_shift_moves_by_up_to_the_given_pixels_and_fills_with_zero():
    images = digits()
    moved = np.asarray(random_shift(jnp.asarray(images), jax.random.key(0), 2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, window in zip(moved, padded, strict=True):
        offsets = [(i, j) for i in range(5) for j in range(5) if (window[i : i + 8, j : j + 8] == image).all()]
        assert len(offsets) == 1
        seen.update(offsets)
    assert len(seen) == 25
    assert moved.dtype == np.uint8


def test_no_shift_returns_the_images():
    images = jnp.asarray(digits())
    assert random_shift(images, jax.random.key(0), 0) is images


def test_flip_mirrors_about_half_of_the_images():
    images = digits()
    flipped = np.asarray(random_flip(jnp.asarray(images), jax.random.key(0)))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 90 < mirrored.sum() < 166  # 5 standard deviations around 128


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normalise(dtype):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    result = normalise(jnp.asarray(images), mean, std, dtype)
    assert result.dtype == jnp.dtype(dtype)
    expected = (images / 255 - np.asarray(mean)) / np.asarray(std)
    np.testing.assert_allclose(
        np.asarray(result, np.float32), expected, rtol=1e-5 if dtype == "float32" else 0.01, atol=1e-5
    )
