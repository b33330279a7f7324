import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from gw_jax.augment import randaugment
from gw_jax.augment.randaugment import OPERATIONS, fixed_point, rand_augment, warp
from gw_jax.versions import enable_x64
from tests.helpers.sharding import batch_sharding

HEIGHT, WIDTH = 23, 28
SIGNED = OPERATIONS[1:10]
FACTORS = (0.0, 0.1, 0.73, 1.0, 1.27, 1.9)
NUM_COPIES = 1008

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")

jitted = jax.jit(rand_augment, static_argnames=("num_layers", "magnitude"))


def natural():
    """Smooth colours, an edge and a little noise, in 30 to 220."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / HEIGHT
    waves = np.stack([np.sin(5 * x + 3 * y), np.cos(4 * y - x), np.sin(2 * x * y + 1)], -1)
    values = 128 + 50 * waves + 30 * (x + 2 * y > 1.4)[..., None] + rng.normal(0, 3, waves.shape)
    return np.clip(values, 30, 220).astype(np.uint8)


def samples():
    """Natural, noisy, constant, almost constant and two-valued images ``[5, h, w, 3]``."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    constant = np.full_like(noise, 77)
    almost = constant.copy()
    almost[0, 0], almost[-1, -1] = 78, 200
    return np.stack([natural(), noise, constant, almost, np.where(noise > 40, 255, 0).astype(np.uint8)])


def pillow(operation, images, *args):
    """The result of a Pillow operation on ``[n, h, w, c]``; one channel is its mode L."""
    pictures = [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]
    return np.stack([np.asarray(operation(picture, *args)) for picture in pictures]).astype(int).reshape(images.shape)


def ours(operation, images, *args):
    return np.asarray(jax.jit(jax.vmap(lambda image: operation(image, *args)))(images)).astype(int)


@pytest.fixture(params=[3, 1], ids=["RGB", "grey"])
def images(request):
    return samples()[..., : request.param]


@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_colour_operations_are_pillows(name, images, quick_compilation):
    operation = getattr(randaugment, name)
    over_factors = jax.vmap(jax.vmap(operation, (0, None)), (None, 0))
    with quick_compilation():
        result = np.asarray(jax.jit(over_factors)(images, jnp.asarray(FACTORS, jnp.float32)))
    assert result.dtype == np.uint8
    enhancer = getattr(ImageEnhance, name.capitalize())
    expected = np.stack([pillow(lambda image, f: enhancer(image).enhance(f), images, f) for f in FACTORS])
    # A fused multiplication and addition may fall to the other side of a whole number.
    assert abs(result - expected).max() <= 1
    assert (result != expected).mean() < 0.01


@pytest.mark.parametrize("num_bits", [1, 4, 8])
def test_posterize_is_pillows(num_bits, images):
    expected = pillow(ImageOps.posterize, images, num_bits)
    np.testing.assert_array_equal(ours(randaugment.posterize, images, num_bits), expected)


@pytest.mark.parametrize("threshold", [119.0, 178.5, 255.0])
def test_solarize_is_pillows(threshold, images):
    expected = pillow(ImageOps.solarize, images, threshold)
    np.testing.assert_array_equal(ours(randaugment.solarize, images, threshold), expected)


def test_autocontrast_is_pillows_but_for_whole_numbers(images):
    expected, result = pillow(ImageOps.autocontrast, images), ours(randaugment.autocontrast, images)
    low, high = images.min((1, 2), keepdims=True).astype(int), images.max((1, 2), keepdims=True).astype(int)
    whole = (images - low) * 255 % np.maximum(high - low, 1) == 0
    np.testing.assert_array_equal(result[~whole], expected[~whole])
    assert set(np.unique((result - expected)[whole])) <= {0, 1}


def test_equalize_is_pillows(images):
    expected = pillow(ImageOps.equalize, images)
    assert (expected[2] == images[2]).all()  # nothing to equalise
    np.testing.assert_array_equal(ours(randaugment.equalize, images), expected)


def test_warp_is_pillows():
    rng = np.random.default_rng(2)
    matrices = np.concatenate([np.eye(2), np.zeros((2, 1))], 1) + rng.normal(0, [0.4, 0.4, 8], (20, 2, 3))
    image = samples()[1]
    result = np.asarray(jax.jit(jax.vmap(warp, (None, 0)))(image, fixed_point(matrices)))
    expected = np.stack(
        [
            np.asarray(Image.fromarray(image).transform((WIDTH, HEIGHT), Image.AFFINE, m.ravel(), Image.NEAREST))
            for m in matrices
        ]
    )
    assert 0.1 < (expected == 0).all(-1).mean() < 0.9
    np.testing.assert_array_equal(result, expected)


def expected_results(image, magnitude):
    """Pillow's results for an image, every operation and sign, by torchvision's definitions."""
    m = magnitude / 30
    picture = Image.fromarray(image)
    results = {}
    for sign in (-1, 1):
        affine = functools.partial(picture.transform, (WIDTH, HEIGHT), Image.AFFINE, resample=Image.NEAREST)
        factor = 1 + sign * 0.9 * m
        move_x, move_y = (sign * int(150 / 331 * size * m) for size in (WIDTH, HEIGHT))
        signed = {
            "shear_x": affine((1, sign * 0.3 * m, 0, 0, 1, 0)),
            "shear_y": affine((1, 0, 0, sign * 0.3 * m, 1, 0)),
            "translate_x": affine((1, 0, move_x, 0, 1, 0)),
            "translate_y": affine((1, 0, 0, 0, 1, move_y)),
            "rotate": picture.rotate(sign * 30 * m, Image.NEAREST),
            "brightness": ImageEnhance.Brightness(picture).enhance(factor),
            "color": ImageEnhance.Color(picture).enhance(factor),
            "contrast": ImageEnhance.Contrast(picture).enhance(factor),
            "sharpness": ImageEnhance.Sharpness(picture).enhance(factor),
        }
        results |= {(name, sign): np.asarray(result) for name, result in signed.items()}
    unsigned = {
        "identity": picture,
        "posterize": ImageOps.posterize(picture, 8 - round(magnitude / 7.5)),
        "solarize": ImageOps.solarize(picture, 255 - 8.5 * magnitude),
        "autocontrast": ImageOps.autocontrast(picture),
        "equalize": ImageOps.equalize(picture),
    }
    return results | {(name, 1): np.asarray(result) for name, result in unsigned.items()}


def copies():
    """One image many times, split over all devices."""
    images = np.broadcast_to(natural(), (NUM_COPIES, HEIGHT, WIDTH, 3))
    return jax.device_put(images, batch_sharding())


@pytest.fixture(scope="module")
def compiled(quick_compilation):
    """One layer of magnitude 12 for all copies, compiled in float64 mode with strict promotion."""
    with quick_compilation(), enable_x64(), jax.numpy_dtype_promotion("strict"):
        return jitted.lower(copies(), jax.random.key(0), num_layers=1, magnitude=12).compile()


@pytest.fixture(scope="module")
def augmented(compiled):
    return compiled(copies(), jax.random.key(0))


def test_every_image_gets_one_of_the_operations_uniformly(augmented):
    image = natural()
    results, counts = np.unique(np.asarray(augmented).reshape(NUM_COPIES, -1), axis=0, return_counts=True)
    expected = expected_results(image, 12)
    assert len(results) == len(expected) == 2 * 9 + 5
    by_operation, by_sign = dict.fromkeys(OPERATIONS, 0), {-1: 0, 1: 0}
    for result, count in zip(results.reshape(-1, *image.shape).astype(int), counts, strict=True):
        matches = [choice for choice, truth in expected.items() if abs(result - truth).max() <= 1]
        assert len(matches) == 1
        name, sign = matches[0]
        del expected[name, sign]
        by_operation[name] += count
        by_sign[sign] += count * (name in SIGNED)
    share = NUM_COPIES / len(OPERATIONS)
    assert sum((count - share) ** 2 / share for count in by_operation.values()) < 34.5  # chi-square, 13 dof, p = 0.001
    assert abs(by_sign[1] - by_sign[-1]) < 4 * np.sqrt(by_sign[1] + by_sign[-1])


def test_devices_exchange_nothing(compiled, augmented):
    program = compiled.as_text()
    assert not [name for name in COLLECTIVES if name in program]
    assert augmented.sharding.is_equivalent_to(copies().sharding, 4)


def test_results_depend_on_the_key_only(compiled, augmented):
    again, other = (np.asarray(compiled(copies(), jax.random.key(seed))) for seed in (0, 1))
    np.testing.assert_array_equal(again, augmented)
    assert (other != augmented).any((1, 2, 3)).mean() > 0.8


def test_magnitude_zero_changes_only_autocontrast_and_equalize_and_layers_are_independent(quick_compilation):
    image = natural()
    with quick_compilation():
        images = np.broadcast_to(image, (NUM_COPIES, *image.shape))
        results = np.asarray(jitted(images, jax.random.key(1), num_layers=2, magnitude=0))
    assert results.dtype == np.uint8
    # Two independent layers: 12 of 14 operations change nothing in each; layers that drew the same would give 12 / 14.
    share = (12 / 14) ** 2
    unchanged = (results == image).all((1, 2, 3)).sum()
    assert abs(unchanged - NUM_COPIES * share) < 4 * np.sqrt(NUM_COPIES * share * (1 - share))


def test_grey_images_get_the_operations_of_their_colour_images(quick_compilation):
    """Three equal channels are treated alike by every operation, and as one would be."""
    grey = np.broadcast_to(natural()[..., :1], (100, HEIGHT, WIDTH, 1))
    colour = np.repeat(grey, 3, -1)
    with quick_compilation():
        result, expected = (jitted(images, jax.random.key(3), num_layers=2, magnitude=9) for images in (grey, colour))
    chex.assert_equal_shape([result, grey])
    chex.assert_trees_all_equal(np.repeat(np.asarray(result), 3, -1), np.asarray(expected))


def test_no_layers_return_the_images():
    images = samples()[:, :3, :2]
    np.testing.assert_array_equal(jitted(images, jax.random.key(0), num_layers=0, magnitude=9), images)


@pytest.mark.parametrize("shape", [(4, 8, 8, 4), (8, 8, 3)])
def test_images_that_are_neither_grey_nor_rgb_are_refused(shape):
    with pytest.raises(ValueError, match=rf"shape \({', '.join(map(str, shape))}\); it accepts uint8 \[n, h, w, 3\]"):
        rand_augment(jnp.zeros(shape, jnp.uint8), jax.random.key(0), num_layers=2, magnitude=9)


def test_normalised_images_are_refused():
    with pytest.raises(ValueError, match="got float32 images"):
        rand_augment(jnp.zeros((4, 8, 8, 3)), jax.random.key(0), num_layers=2, magnitude=9)


@pytest.mark.parametrize("numbers", [{"num_layers": 2, "magnitude": 31}, {"num_layers": -1, "magnitude": 9}])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ValueError, match=r"31; 0 to 30 are allowed|-1; 0 or more are allowed"):
        rand_augment(jnp.zeros((4, 8, 8, 3), jnp.uint8), jax.random.key(0), **numbers)
