"""What both ways of ROIAlign share: pixels and weights of the samples on one axis."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gw_jax.ops.checks import accumulation_dtype
from gw_jax.ops.exact import quotient, times_integer

SAMPLES = 2
# Pixels that one bin reads on an axis: two neighbours of each sample.
TAPS = 2 * SAMPLES


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


@dataclasses.dataclass(frozen=True)
class Taps:
    """The pixels that each bin reads on each axis, and their weights, which are zero for a box of no level.

    Attributes:
        rows: int32 ``[k, bins, 4]``.
        columns: likewise.
        row_weights: ``[k, bins, 4]``, in the type of sums. Those of a bin inside of the map sum to 1.
        column_weights: likewise.
    """

    rows: jax.Array
    columns: jax.Array
    row_weights: jax.Array
    column_weights: jax.Array


def taps(static: Levels, boxes: jax.Array, levels: jax.Array, sizes: jax.Array) -> Taps:
    """The taps of boxes ``[k, 4]`` in their levels, int32 ``[k]``, of valid sizes int32 ``[levels, 2]``."""
    member, levels = existing(static, levels)
    scale, size = jnp.array(static.scales, boxes.dtype)[levels], sizes[levels]
    rows, row_weights = _axis(boxes[:, 1], boxes[:, 3], scale, size[:, 0], member, static)
    columns, column_weights = _axis(boxes[:, 0], boxes[:, 2], scale, size[:, 1], member, static)
    return Taps(rows, columns, row_weights, column_weights)


def existing(static: Levels, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each box has a level, and that level, or 0."""
    member = (levels >= 0) & (levels < len(static.shapes))
    return member, jnp.where(member, levels, 0)


def _axis(
    low: jax.Array, high: jax.Array, scale: jax.Array, size: jax.Array, member: jax.Array, levels: Levels
) -> tuple[jax.Array, jax.Array]:
    """Pixels and weights on one axis, of boxes from ``low`` to ``high`` in image pixels; all arguments are ``[k]``."""
    bins = levels.output_size
    # Rounded as in the reference: next to it, fused operations change values by up to 2e-5, 100 times their other error.
    start = (low * scale)[:, None, None]
    bin_size = quotient(jnp.maximum((high - low) * scale, 1), jnp.full_like(low, bins))[:, None, None]
    index = jnp.arange(bins, dtype=low.dtype)[None, :, None]
    quarters = jnp.stack([bin_size / 4, bin_size / 2 + bin_size / 4], -1)[:, :, 0]
    position = (start + times_integer(bin_size, index)) + quarters
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
