"""Images that are not 8 bit, not grey or RGB, of absurd sizes or in formats of other programs."""

import io

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from gw_jax.data import images
from gw_jax.data.decoding import ImageTypeError
from gw_jax.data.images import (
    Transform,
    centre_crop,
    eval_image,
    resize_and_centre_crop,
    train_image,
)
from tests.helpers.images import image_file


def encoded(picture, form="PNG"):
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


RAMP = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (8, 1))


@pytest.mark.parametrize("form", ["array", "PNG", "TIFF"])
def test_16_bit_images_are_scaled_from_their_range(form):
    image = RAMP[..., None] if form == "array" else encoded(Image.fromarray(RAMP), form)
    result = eval_image(image, 1, Transform())
    assert np.array_equal(result[..., 0], np.tile(np.arange(256), (8, 1)))
    assert eval_image(image, 1, Transform(size=8, crop=True, eval_resize=8)).dtype == np.uint8
    if form != "array":
        assert np.array_equal(eval_image(image, 3, Transform()), np.repeat(result, 3, -1))


def test_boolean_arrays_are_black_and_white():
    assert eval_image(np.eye(3, dtype=bool), 1, Transform())[..., 0].tolist() == (255 * np.eye(3, dtype=int)).tolist()


@pytest.mark.parametrize("transform", [Transform(), Transform(size=4), Transform(size=4, crop=True, eval_resize=5)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int8", "uint32", "int16"])
def test_arrays_without_a_known_range_are_refused(dtype, transform):
    for read in (eval_image, lambda *arguments: train_image(*arguments, np.random.default_rng(0))):
        with pytest.raises(ImageTypeError, match=f"type {dtype} have no known range; convert the images to uint8"):
            read(np.ones((8, 8, 3), dtype), 3, transform)


@pytest.mark.parametrize("shape", [(8,), (2, 8, 8, 3)])
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(ImageTypeError, match=r"are no images; \[height, width, channels\]"):
        eval_image(np.zeros(shape, np.uint8), 3, Transform())


def test_an_image_without_pixels_is_broken():
    with pytest.raises(ValueError, match=r"without pixels, of shape \(0, 8, 3\)"):
        eval_image(np.zeros((0, 8, 3), np.uint8), 3, Transform())


def test_channels_that_pillow_cannot_resize_are_refused():
    image = np.zeros((8, 8, 5), np.uint8)
    assert eval_image(image, 5, Transform()).shape == (8, 8, 5)
    with pytest.raises(ImageTypeError, match=r"have 5 channels; 1, 3 or 4 can be resized"):
        eval_image(image, 5, Transform(size=4))
    with pytest.raises(ImageTypeError, match="can be read with 1, 3 or 4 channels, not with 2"):
        eval_image(encoded(Image.new("LA", (8, 8))), 2, Transform())


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_encoded_pixels_without_a_known_range_are_refused(dtype):
    with pytest.raises(ValueError, match="have no known range; 8 or 16 bits are read"):
        eval_image(encoded(Image.fromarray(np.ones((8, 8), dtype)), "TIFF"), 1, Transform())


def test_four_channels_stay_four():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 4), dtype=np.uint8)
    for given in (image, encoded(Image.fromarray(image))):
        assert np.array_equal(eval_image(given, 4, Transform()), image)
        transform = Transform(size=5, crop=True, eval_resize=6)
        expected = centre_crop(Image.fromarray(image).resize((7, 6), Image.Resampling.BILINEAR), 5)
        assert np.array_equal(eval_image(given, 4, transform), np.asarray(expected))
        assert train_image(given, 4, transform, np.random.default_rng(0)).shape == (5, 5, 4)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1000, 7), (7, 1000), (97, 1), (1, 1), (200, 150), (61, 400), (99, 36)])
def test_resizing_only_the_crop_gives_the_pixels_of_resizing_the_image(monkeypatch, mode, size):
    picture = Image.open(io.BytesIO(image_file(mode, size)))
    for resize, crop in [(256, 224), (1024, 100), (100, 120), (37, 64), (8, 7), (2, 1)]:
        whole = np.asarray(resize_and_centre_crop(picture, resize, crop))
        with monkeypatch.context() as patch:
            patch.setattr(images, "MAX_RESIZED_PIXELS", 0)
            assert np.array_equal(np.asarray(resize_and_centre_crop(picture, resize, crop)), whole), (resize, crop)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_long_image_needs_little_memory(monkeypatch, size):
    resize = Image.Image.resize

    def bounded_resize(picture, new, *arguments, **options):
        assert new[0] * new[1] <= 1 << 24
        return resize(picture, new, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", bounded_resize)
    picture = Image.frombytes("L", size, np.random.default_rng(0).bytes(60_000))
    result = eval_image(encoded(picture), 1, Transform(size=224, crop=True))[..., 0]
    # One axis after the other, so that no step holds more than the long one.
    longer, start = 256 * 60_000, round((256 * 60_000 - 224) / 2)
    if size[0] == 1:
        picture, result = picture.transpose(Image.Transpose.TRANSPOSE), result.T
    line = picture.resize((longer, 1), Image.Resampling.BILINEAR).crop((start, 0, start + 224, 1))
    assert np.array_equal(result, np.asarray(line.resize((224, 224), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536), (9_460, 9_460)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_sizes_are_refused_before_decoding(size):
    file = encoded(Image.new("1", size))
    # Cut off in the pixels: decoding would find that first.
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels; at most"):
        eval_image(file[:60], 1, Transform())


def test_formats_that_start_other_programs_are_not_recognised(monkeypatch, tmp_path):
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UnidentifiedImageError):
        eval_image(encoded(Image.new("RGB", (8, 8)), "EPS"), 3, Transform())
    assert not started.exists()
