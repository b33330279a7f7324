"""ROIAlign by gathering: all levels are one table of pixels, of which each bin reads 4 x 4."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax.ops.chunks import map_chunks, sum_chunks
from gw_jax.ops.roi_samples import TAPS, Levels, Taps, existing, taps


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

    def chunk(boxes: jax.Array, levels: jax.Array) -> jax.Array:
        own = _in_table(static, taps(static, boxes, levels, sizes), levels)
        rows, columns = own.rows, own.columns
        total = jnp.zeros((*rows.shape[:2], *columns.shape[1:2], static.channels), static.accumulation_dtype)
        # XLA fuses these 16 reads and sums; it stores what one gather reads, which takes 20 times as long on a CPU.
        for i, j in itertools.product(range(TAPS), repeat=2):
            weight = own.row_weights[:, :, None, i] * own.column_weights[:, None, :, j]
            pixels = table.at[rows[:, :, None, i] + columns[:, None, :, j]].get(mode="promise_in_bounds")
            total += weight[..., None] * pixels.astype(total.dtype)
        return total.astype(static.dtype)

    return map_chunks(chunk, _bytes_per_roi(static), boxes, levels)


def _align_forward(static, features, boxes, levels, sizes):  # type: ignore[no-untyped-def]
    return align(static, features, boxes, levels, sizes), (boxes, levels, sizes)


def _align_backward(static, residuals, cotangent):  # type: ignore[no-untyped-def]
    boxes, levels, sizes = residuals

    def chunk(total, boxes, levels, cotangent):  # type: ignore[no-untyped-def]
        (table,) = total
        own = _in_table(static, taps(static, boxes, levels, sizes), levels)
        index = own.rows[:, :, None, :, None] + own.columns[:, None, :, None, :]
        weights = own.row_weights[:, :, None, :, None] * own.column_weights[:, None, :, None, :]
        updates = weights[..., None] * cotangent.astype(table.dtype)[:, :, :, None, None, :]
        return (table.at[index].add(updates, mode="promise_in_bounds"),)

    areas = [height * width for height, width, _ in static.shapes]
    zeros = jnp.zeros((sum(areas), static.channels), static.accumulation_dtype)
    (table,) = sum_chunks(chunk, (zeros,), _bytes_per_roi(static), boxes, levels, cotangent)
    parts = jnp.split(table, np.cumsum(areas)[:-1])
    gradients = tuple(part.reshape(shape).astype(static.dtype) for part, shape in zip(parts, static.shapes, strict=True))
    return gradients, None, None, None


align.defvjp(_align_forward, _align_backward)


def _in_table(static: Levels, own: Taps, levels: jax.Array) -> Taps:
    """The taps with, for rows, where they begin in the table of all levels."""
    _, levels = existing(static, levels)
    areas = [height * width for height, width, _ in static.shapes]
    start = jnp.array(np.cumsum([0, *areas[:-1]]), jnp.int32)[levels][:, None, None]
    stride = jnp.array([width for _, width, _ in static.shapes], jnp.int32)[levels][:, None, None]
    return dataclasses.replace(own, rows=start + own.rows * stride)


def _bytes_per_roi(static: Levels) -> int:
    """Of the pixels that are read, were they all kept until they are summed."""
    return (static.output_size * TAPS) ** 2 * static.channels * static.accumulation_dtype.itemsize
