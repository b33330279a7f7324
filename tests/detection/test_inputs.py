"""Canvases, valid areas and pixel values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.inputs import CANVASES, aligned, check_canvas, choose_canvas, place_on_canvas
from gw_jax.detection.pixels import PIXELS, normalize
from tests.detection import golden


def test_every_resized_image_of_the_golden_table_fits_a_canvas():
    table = golden.load("ops/tables")
    np.testing.assert_array_equal(aligned(table["resize_output_hw"]), table["padded_hw"])
    inside = [size for size in table["resize_output_hw"].tolist() if max(size) <= 1344 and min(size) <= 800]
    assert len(inside) > 100
    for height, width in inside:
        canvas = choose_canvas(height, width)
        assert canvas in CANVASES
        assert canvas[0] >= height
        assert canvas[1] >= width


@pytest.mark.parametrize("pixels", ["rgb", "bgr"])
def test_pixels_are_the_references(pixels):
    table = golden.load("ops/tables")
    source = table["image.resized_min48_max80_hwc"]
    expected = table[f"image.normalised_{pixels}_chw"].transpose(1, 2, 0)
    found = normalize(jnp.asarray(source)[None], pixels=pixels)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pixels", ["rgb", "bgr"])
def test_pixels_are_rounded_as_by_numpy(pixels):
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    layout = PIXELS[pixels]
    expected = (values.astype(np.float32) - np.float32(layout.mean)) / np.float32(layout.std)
    np.testing.assert_array_equal(jax.jit(lambda rgb: normalize(rgb, pixels=pixels))(values), expected)


def test_the_canvas_is_the_references_padding():
    table = golden.load("ops/tables")
    image = table["image.normalised_rgb_chw"].transpose(1, 2, 0)
    images, valid, sizes = place_on_canvas([image], (128, 96))
    padded = table["image.padded_rgb_chw"].transpose(1, 2, 0)
    np.testing.assert_array_equal(images[0, : padded.shape[0], : padded.shape[1]], padded)
    assert not images[0, padded.shape[0] :].any()
    assert (valid.tolist(), sizes.tolist()) == ([list(padded.shape[:2])], [list(image.shape[:2])])


def test_padding_is_zero_after_normalisation():
    images = normalize(jnp.zeros((1, 4, 6, 3), jnp.uint8), jnp.array([[3, 2]]))
    assert (images[0, :3, :2] < -1.5).all()
    assert not images[0, 3:].any()
    assert not images[0, :, 2:].any()


@pytest.mark.parametrize("canvas", [(800, 1333), (0, 32), (32.0, 32), (32,), "800x1344", (True, 32), None])
def test_bad_canvases_are_refused(canvas):
    with pytest.raises(ValueError, match="multiples of 32"):
        check_canvas(canvas)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=re.escape("An image of 900x900 pixels (height x width) is larger than every canvas")
    ):
        choose_canvas(900, 900)
    small, large = np.zeros((20, 20, 3)), np.zeros((20, 70, 3))
    with pytest.raises(ValueError, match="Image 1 has 20x70 pixels"):
        place_on_canvas([small, large], (64, 64))
    with pytest.raises(ValueError, match="got no images"):
        place_on_canvas([], (64, 64))
    with pytest.raises(ValueError, match="Image 1 has shape"):
        place_on_canvas([small, np.zeros((20, 20))], (64, 64))
    with pytest.raises(ValueError, match="pixels"):
        normalize(jnp.zeros((1, 1, 3)), pixels="RGB")
    with pytest.raises(ValueError, match=re.escape("array of shape (4, 4, 1); [..., 3] is needed")):
        normalize(jnp.zeros((4, 4, 1)))
    with pytest.raises(ValueError, match=re.escape("array of shape (4, 4, 3); [n, h, w, 3] with sizes is needed")):
        normalize(jnp.zeros((4, 4, 3)), jnp.array([[2, 2]]))


def test_sizes_and_images_of_numpy_and_lists():
    image = np.ones((20, 30, 3), np.float32)
    expected = place_on_canvas([image], (32, 64))
    for images, canvas in (([image.tolist()], np.array([32, 64])), ([jnp.asarray(image)], (np.int64(32), np.int64(64)))):
        for found, array in zip(place_on_canvas(images, canvas), expected, strict=True):
            np.testing.assert_array_equal(found, array)
