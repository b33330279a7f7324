"""What both ways of ROIAlign share: pixels and weights of the samples on one axis, and chunks of RoIs."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gw_jax.ops.checks import accumulation_dtype

SAMPLES = 2
# Pixels that one bin reads on an axis: two neighbours of each sample.
TAPS = 2 * SAMPLES
# Of the largest array that is made for a chunk of RoIs of one image.
CHUNK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Levels:
    """What is static in a call: ``[h, w, c]`` of each level, their type, their scales, and the bins per side."""

    shapes: tuple[tuple[int, int, int], ...]
    dtype: DTypeLike
    scales: tuple[float, ...]
    output_size: int

    @property
    def channels(self) -> int:
        """Channels of every level."""
        return self.shapes[0][2]

    @property
    def accumulation_dtype(self) -> jnp.dtype:
        """The type of sums."""
        return accumulation_dtype(self.dtype)


def taps(
    low: jax.Array, high: jax.Array, scale: jax.Array, size: jax.Array, member: jax.Array, levels: Levels
) -> tuple[jax.Array, jax.Array]:
    """The pixels that each bin reads on one axis, and their weights.

    Args:
        low: ``[k]``, the start of each box, in image pixels.
        high: ``[k]``, its end.
        scale: ``[k]``, feature pixels per image pixel, in the type of ``low``.
        size: int32 ``[k]``, valid pixels.
        member: bool ``[k]``; the weights of other boxes are zero.
        levels: of the call.

    Returns:
        int32 and floating point ``[k, bins, 4]``. The weights of a bin inside of the map sum to 1.
    """
    bins = levels.output_size
    start = (low * scale)[:, None, None]
    bin_size = _quotient(jnp.maximum((high - low) * scale, 1), bins)[:, None, None]
    index = jnp.arange(bins, dtype=low.dtype)[None, :, None]
    quarters = jnp.stack([bin_size / 4, bin_size / 2 + bin_size / 4], -1)[:, :, 0]
    position = (start + _product(index, bin_size)) + quarters
    limit = size.astype(low.dtype)[:, None, None]
    # Comparisons with NaN are false, so that a box that is not finite has no weights.
    inside = (position >= -1) & (position <= limit) & member[:, None, None]
    position = jnp.where(inside, jnp.clip(position, 0, limit - 1), 0).astype(levels.accumulation_dtype)
    lower = jnp.floor(position)
    fraction = position - lower
    lower = lower.astype(jnp.int32)
    upper = jnp.minimum(lower + 1, size[:, None, None] - 1)
    pixels = jnp.stack([lower, upper], -1)
    weights = jnp.stack([1 - fraction, fraction], -1) / SAMPLES
    weights = jnp.where(inside[..., None], weights, 0)
    return pixels.reshape(-1, bins, TAPS), weights.reshape(-1, bins, TAPS)


def map_chunks(function: Callable[..., jax.Array], bytes_per_roi: int, *arrays: jax.Array) -> jax.Array:
    """``function`` of chunks of the first axis of ``arrays``, joined; the last chunk is padded with zeros."""
    count = arrays[0].shape[0]
    chunks, rows = _chunks(count, bytes_per_roi)
    if chunks == 1:
        return function(*arrays)
    result = jax.lax.map(lambda chunk: function(*chunk), tuple(_split(array, chunks, rows) for array in arrays))
    return result.reshape(chunks * rows, *result.shape[2:])[:count]


def sum_chunks(
    function: Callable[..., tuple[jax.Array, ...]], total: tuple[jax.Array, ...], bytes_per_roi: int, *arrays: jax.Array
) -> tuple[jax.Array, ...]:
    """``function(total, *chunk)`` one chunk after the other, each with the last one's result."""
    chunks, rows = _chunks(arrays[0].shape[0], bytes_per_roi)
    if chunks == 1:
        return function(total, *arrays)
    split = tuple(_split(array, chunks, rows) for array in arrays)
    return jax.lax.scan(lambda total, chunk: (function(total, *chunk), None), total, split)[0]


def _chunks(count: int, bytes_per_roi: int) -> tuple[int, int]:
    """Number of chunks, and RoIs of each, for ``count`` RoIs."""
    most = max(1, CHUNK_BYTES // bytes_per_roi)
    chunks = max(1, -(-count // most))
    return chunks, -(-count // chunks)


def _split(array: jax.Array, chunks: int, rows: int) -> jax.Array:
    padding = [(0, chunks * rows - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(chunks, rows, *array.shape[1:])


# Positions must be rounded as in the reference: next to it, products that XLA joins with sums, and a division that it makes
# a product, change values by up to 2e-5, 100 times their other error. Products of a small integer with one half of a
# number's digits are exact, and their sum is rounded once, whatever is joined.


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x`` as the sum of two numbers, each with half of its digits."""
    kind, digits = (jnp.uint64, 27) if x.dtype == jnp.float64 else (jnp.uint32, 12)
    bits = jax.lax.bitcast_convert_type(x, kind)
    upper = jax.lax.bitcast_convert_type((bits >> digits) << digits, x.dtype)
    return upper, x - upper


def _product(index: jax.Array, x: jax.Array) -> jax.Array:
    """``index * x``, rounded once; ``index`` holds integers below 4096."""
    upper, lower = _halves(x)
    return index * upper + index * lower


def _quotient(x: jax.Array, divisor: int) -> jax.Array:
    """``x / divisor``, rounded once; ``divisor`` is below 4096."""
    quotient = x / divisor
    upper, lower = _halves(quotient)
    return quotient + ((x - divisor * upper) - divisor * lower) / divisor
