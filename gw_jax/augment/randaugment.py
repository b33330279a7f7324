"""RandAugment on the device: random geometric and colour operations on a batch of images, as Pillow computes them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

MAX_MAGNITUDE = 30
# Channels of the images for which the operations are defined: grey and RGB.
CHANNELS = (1, 3)
# Beyond these the fixed-point coordinates and the sums over pixels would overflow 32 bits.
MAX_SIDE, MAX_PIXELS = (1 << 14) - 1, 1 << 23
OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
_NUM_WARPS = OPERATIONS.index("rotate") + 1
# Bits behind the point in Pillow's coordinates. With integers, every device chooses the same neighbour as Pillow.
_FRACTION_BITS = 16


def rand_augment(images: jax.Array, key: jax.Array, *, num_layers: int, magnitude: int) -> jax.Array:
    """Applies ``num_layers`` operations to every image, each drawn uniformly from the 14 of ``OPERATIONS``.

    With ``m = magnitude / 30`` and random signs: shears by ``0.3 m``; translates by ``150/331 m`` of the width or height,
    rounded down to whole pixels; rotates by ``30 m`` degrees; colour operations with factor ``1 ± 0.9 m``; posterises to
    ``8 - round(4 m)`` bits; solarises from ``255 (1 - m)`` up. Pixels come from the nearest neighbour, black from outside.
    A grey image has its values as luma, so that ``color`` leaves it unchanged, as in Pillow.

    Args:
        images: uint8 ``[n, h, w, 3]`` or ``[n, h, w, 1]`` of up to 2^23 pixels each, with sides below 2^14.
        key: the only source of randomness; every image and layer draws for itself.
        num_layers: operations per image, one after the other; 0 or more.
        magnitude: 0 to 30; 9 is usual.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: the images are not uint8 ``[n, h, w, 3]`` or ``[n, h, w, 1]``, or a number is out of range.

    Source: Cubuk et al. 2020, with the operations and magnitudes of torchvision's ``RandAugment``.
    """
    if images.ndim != 4 or images.shape[-1] not in CHANNELS or images.dtype != jnp.uint8:
        raise ValueError(
            f"rand_augment got {images.dtype} images of shape {images.shape}; it accepts uint8 [n, h, w, 3] and "
            "[n, h, w, 1]. Switch it off for images that are neither RGB nor grey, and apply it before normalisation."
        )
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(f"magnitude={magnitude}; 0 to {MAX_MAGNITUDE} are allowed (9 is usual).")
    if num_layers < 0:
        raise ValueError(f"num_layers={num_layers}; 0 or more are allowed (2 is usual).")
    num_images, height, width, _ = images.shape
    matrices = _warp_matrices(height, width, magnitude)
    strength = 0.9 * magnitude / MAX_MAGNITUDE
    factors = np.asarray([1 - strength, 1 + strength], np.float32)
    num_bits = 8 - round(4 * magnitude / MAX_MAGNITUDE)
    threshold = 255 - 255 * magnitude / MAX_MAGNITUDE
    branches = (
        lambda image, factor: image,
        brightness,
        color,
        contrast,
        sharpness,
        lambda image, factor: posterize(image, num_bits),
        lambda image, factor: solarize(image, threshold),
        lambda image, factor: autocontrast(image),
        lambda image, factor: equalize(image),
    )

    def augment(image: jax.Array, operation: jax.Array, sign: jax.Array) -> jax.Array:
        # A switch over a batch computes all its branches, so the costly warp stands outside, once for all operations.
        chosen = jnp.where(operation < _NUM_WARPS, operation, 0)
        image = warp(image, jnp.asarray(matrices)[chosen, sign])
        return jax.lax.switch(operation - (_NUM_WARPS - 1), branches, image, jnp.asarray(factors)[sign])

    def layer(images: jax.Array, draws: jax.Array) -> tuple[jax.Array, None]:
        return jax.vmap(augment)(images, draws >> 1, draws & 1), None

    draws = jax.random.randint(key, (num_layers, num_images), 0, 2 * len(OPERATIONS), jnp.int32)
    return jax.lax.scan(layer, images, draws)[0]


def _warp_matrices(height: int, width: int, magnitude: int) -> np.ndarray:
    """The matrices of :func:`warp` for identity, shears, translations and rotation, with both signs: ``[6, 2, 2, 3]``."""
    shear = 0.3 * magnitude / MAX_MAGNITUDE
    # In integers: a product that falls short of a whole pixel by rounding would lose that pixel.
    move_x, move_y = (150 * magnitude * size // (331 * MAX_MAGNITUDE) for size in (width, height))
    angle = math.radians(30 * magnitude / MAX_MAGNITUDE)
    matrices = []
    for sign in (-1, 1):
        cos, sin = math.cos(sign * angle), math.sin(sign * angle)
        x, y = width / 2, height / 2
        matrices.append(
            [
                [[1, 0, 0], [0, 1, 0]],
                [[1, sign * shear, 0], [0, 1, 0]],
                [[1, 0, 0], [sign * shear, 1, 0]],
                [[1, 0, -sign * move_x], [0, 1, 0]],
                [[1, 0, 0], [0, 1, -sign * move_y]],
                [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]],
            ]
        )
    return fixed_point(np.asarray(matrices, np.float64).swapaxes(0, 1))


def fixed_point(matrices: np.ndarray) -> np.ndarray:
    """Affine maps ``[..., 2, 3]`` from output to input coordinates, as in Pillow, in the form of :func:`warp`.

    Integers of 2^-16 pixels; the last column is the image of the centre of the first pixel.
    """
    first = matrices[..., 2:] + matrices[..., :2].sum(-1, keepdims=True) / 2
    scaled = np.concatenate([matrices[..., :2], first], -1) * 2**_FRACTION_BITS
    return np.floor(scaled + 0.5).astype(np.int32)


def warp(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """``out[y, x] = image[matrix (x, y, 1)]``, the nearest neighbour; zero where that lies outside.

    Accepts ``[h, w, c]`` of any type, with sides below 2^14, and a matrix ``[2, 3]`` of :func:`fixed_point`.
    """
    height, width, _ = image.shape
    x, y = jnp.arange(width, dtype=jnp.int32)[None, :], jnp.arange(height, dtype=jnp.int32)[:, None]
    columns, rows = ((row[0] * x + row[1] * y + row[2]) >> _FRACTION_BITS for row in matrix)
    return image.at[rows, columns].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _blend(degenerate: ArrayLike, image: jax.Array, factor: ArrayLike) -> jax.Array:
    """``degenerate + factor (image - degenerate)``, clipped to 0 to 255 and cut to uint8."""
    start = jnp.asarray(degenerate, jnp.float32)
    blended = start + jnp.asarray(factor, jnp.float32) * (image.astype(jnp.float32) - start)
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _luma(image: jax.Array) -> jax.Array:
    """ITU-R 601-2 luma ``[h, w, 1]``, int32, rounded like Pillow's mode L; grey images are their own."""
    if image.shape[-1] == 1:
        return image.astype(jnp.int32)
    red, green, blue = (image[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16


def brightness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends uint8 ``[h, w, c]`` with black; factor 0 is black, 1 the image. As ``PIL.ImageEnhance.Brightness``."""
    return _blend(0, image, factor)


def color(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends uint8 ``[h, w, c]`` with its luma; factor 0 is grey, 1 the image. As ``PIL.ImageEnhance.Color``."""
    return _blend(_luma(image), image, factor)


def contrast(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends uint8 ``[h, w, c]`` with its mean luma, rounded. As ``PIL.ImageEnhance.Contrast``."""
    num_pixels = image.shape[0] * image.shape[1]
    mean = (_luma(image).sum(dtype=jnp.int32) + num_pixels // 2) // num_pixels
    return _blend(mean, image, factor)


def sharpness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends uint8 ``[h, w, c]`` with itself smoothed, except the outermost pixels. As ``PIL.ImageEnhance.Sharpness``.

    Smoothing is the mean of 3x3 pixels in which the middle one counts 5 times.
    """
    height, width, _ = image.shape
    middle = image.astype(jnp.int32)
    padded = jnp.pad(middle, ((1, 1), (0, 0), (0, 0)))
    columns = padded[:-2] + padded[1:-1] + padded[2:]
    padded = jnp.pad(columns, ((0, 0), (1, 1), (0, 0)))
    total = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:] + 4 * middle
    inner = np.pad(np.ones((max(height - 2, 0), max(width - 2, 0), 1), bool), ((1, 1), (1, 1), (0, 0)))[:height, :width]
    return _blend(jnp.where(inner, (2 * total + 13) // 26, middle), image, factor)


def posterize(image: jax.Array, num_bits: int) -> jax.Array:
    """Keeps the ``num_bits`` (0 to 8) highest bits of uint8 ``[h, w, c]``. As ``PIL.ImageOps.posterize``."""
    return image & jnp.uint8(256 - (1 << (8 - num_bits)))


def solarize(image: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Inverts the values of uint8 ``[h, w, c]`` from ``threshold`` up. As ``PIL.ImageOps.solarize``."""
    return jnp.where(image.astype(jnp.float32) < jnp.asarray(threshold, jnp.float32), image, 255 - image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches every channel of uint8 ``[h, w, c]`` to 0 to 255, cut to integers. As ``PIL.ImageOps.autocontrast``.

    A channel of one value stays. Where the result is a whole number Pillow's may be one less, by its rounding.
    """
    values = image.astype(jnp.int32)
    low, high = values.min((0, 1), keepdims=True), values.max((0, 1), keepdims=True)
    stretched = (values - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, values).astype(jnp.uint8)


def equalize(image: jax.Array) -> jax.Array:
    """Makes the histogram of every channel of uint8 ``[h, w, c]`` as even as it gets. As ``PIL.ImageOps.equalize``.

    ``v -> (step // 2 + #{pixels < v}) // step`` with ``step = #{pixels < the highest value} // 255``; unchanged for step 0.
    """
    pixels = image.reshape(-1, image.shape[-1]).astype(jnp.int32)
    channels = jnp.arange(image.shape[-1], dtype=jnp.int32)[None]
    grey = jnp.arange(256, dtype=jnp.int32)[:, None]
    # Scattered: with all pixels compared with all values instead, 224x224 pixels took 78 ms, not 4, on two CPU cores.
    histogram = jnp.zeros((256, image.shape[-1]), jnp.int32).at[pixels, channels].add(1, mode="promise_in_bounds")
    below = jnp.cumsum(histogram, 0, dtype=jnp.int32) - histogram
    step = jnp.take_along_axis(below, pixels.max(0, keepdims=True), 0) // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    table = jnp.where(step > 0, table, grey).astype(jnp.uint8)
    return table.at[pixels, channels].get(mode="promise_in_bounds").reshape(image.shape)
