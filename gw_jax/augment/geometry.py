"""Random shift and flip of images, and their normalisation, on the device."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gw_jax.ops.checks import accumulation_dtype


def random_shift(images: jax.Array, key: jax.Array, max_shift: int) -> jax.Array:
    """Translates every image by -max_shift to max_shift pixels along both axes, at random; zeros come in.

    Accepts and returns ``[n, h, w, c]`` of any type.
    """
    if max_shift == 0:
        return images
    pad = (max_shift, max_shift)
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * max_shift + 1)

    def cut(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, offsets)


def random_flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability 1/2. Accepts and returns ``[n, h, w, c]`` of any type."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1, :], images)


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: DTypeLike) -> jax.Array:
    """``(images / 255 - mean) / std`` per channel, for uint8 ``[n, h, w, c]``; the result is of type ``dtype``."""
    channels = (1, 1, 1, len(mean))
    # One multiplication and one addition, in float32 at least: bfloat16 cannot hold all 256 grey values.
    compute_dtype = accumulation_dtype(dtype)
    scale = jnp.asarray([1 / (255 * s) for s in std], compute_dtype).reshape(channels)
    offset = jnp.asarray([-m / s for m, s in zip(mean, std, strict=True)], compute_dtype).reshape(channels)
    return (images.astype(compute_dtype) * scale + offset).astype(dtype)
