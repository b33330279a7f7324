"""ROIAlign by gathering: all levels are one table of pixels, of which each bin reads 4 x 4."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax.ops.chunks import map_chunks, sum_chunks
from gw_jax.ops.roi_samples import TAPS, Levels, taps


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def align(
    static: Levels, features: tuple[jax.Array, ...], boxes: jax.Array, levels: jax.Array, sizes: jax.Array
) -> jax.Array:
    """ROIAlign of each box in its level; ``[k, s, s, c]``.

    Args:
        static: of the call.
        features: of each level, ``[h, w, c]``.
        boxes: ``[k, 4]`` in the type of positions.
        levels: int32 ``[k]``.
        sizes: int32 ``[levels, 2]``, valid height and width.
    """
    table = jnp.concatenate([array.reshape(-1, static.channels) for array in features])

    def chunk(boxes: jax.Array, member: jax.Array, levels: jax.Array) -> jax.Array:
        rows, columns, row_weights, column_weights = _reads(static, boxes, member, levels, sizes)
        total = jnp.zeros((*rows.shape[:2], *columns.shape[1:2], static.channels), static.accumulation_dtype)
        # XLA fuses these 16 reads and sums; it stores what one gather reads, which takes 20 times as long on a CPU.
        for i, j in itertools.product(range(TAPS), repeat=2):
            weight = row_weights[:, :, None, i] * column_weights[:, None, :, j]
            pixels = table.at[rows[:, :, None, i] + columns[:, None, :, j]].get(mode="promise_in_bounds")
            total += weight[..., None] * pixels.astype(total.dtype)
        return total.astype(static.dtype)

    return map_chunks(chunk, _bytes_per_roi(static), boxes, *_member(static, levels))


def _align_forward(static, features, boxes, levels, sizes):  # type: ignore[no-untyped-def]
    return align(static, features, boxes, levels, sizes), (boxes, levels, sizes)


def _align_backward(static, residuals, cotangent):  # type: ignore[no-untyped-def]
    boxes, levels, sizes = residuals

    def chunk(total, boxes, member, levels, cotangent):  # type: ignore[no-untyped-def]
        (table,) = total
        rows, columns, row_weights, column_weights = _reads(static, boxes, member, levels, sizes)
        index = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        updates = weights[..., None] * cotangent.astype(table.dtype)[:, :, :, None, None, :]
        return (table.at[index].add(updates, mode="promise_in_bounds"),)

    areas = [height * width for height, width, _ in static.shapes]
    zeros = jnp.zeros((sum(areas), static.channels), static.accumulation_dtype)
    member, levels = _member(static, levels)
    (table,) = sum_chunks(chunk, (zeros,), _bytes_per_roi(static), boxes, member, levels, cotangent)
    parts = jnp.split(table, np.cumsum(areas)[:-1])
    gradients = tuple(part.reshape(shape).astype(static.dtype) for part, shape in zip(parts, static.shapes, strict=True))
    return gradients, None, None, None


align.defvjp(_align_forward, _align_backward)


def _member(static: Levels, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each box has a level, and one that exists."""
    member = (levels >= 0) & (levels < len(static.shapes))
    return member, jnp.where(member, levels, 0)


def _reads(
    static: Levels, boxes: jax.Array, member: jax.Array, levels: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """``[k, s, 4]`` each: where the rows that a bin reads begin in the table, its columns, and the weights of both."""
    scale = jnp.array(static.scales, boxes.dtype)[levels]
    size = sizes[levels]
    areas = [height * width for height, width, _ in static.shapes]
    start = jnp.array(np.cumsum([0, *areas[:-1]]), jnp.int32)[levels][:, None, None]
    stride = jnp.array([width for _, width, _ in static.shapes], jnp.int32)[levels][:, None, None]
    rows, row_weights = taps(boxes[:, 1], boxes[:, 3], scale, size[:, 0], member, static)
    columns, column_weights = taps(boxes[:, 0], boxes[:, 2], scale, size[:, 1], member, static)
    return start + rows * stride, columns, row_weights, column_weights


def _bytes_per_roi(static: Levels) -> int:
    """Of the pixels that are read, were they all kept until they are summed."""
    return (static.output_size * TAPS) ** 2 * static.channels * static.accumulation_dtype.itemsize
