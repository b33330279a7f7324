"""ROIAlign by matrix products: one along the height and one along the width, for every level."""

import functools

import jax
import jax.numpy as jnp

from gw_jax.ops.checks import accumulation_dtype
from gw_jax.ops.chunks import map_chunks, sum_chunks
from gw_jax.ops.inverse_sqrt import HIGHEST
from gw_jax.ops.kernels.placement import device_kind
from gw_jax.ops.roi_samples import Levels, Taps, taps


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
    # What lies outside of the valid area has the weight 0, but 0 * NaN is NaN.
    features = tuple(_select(array, size) for array, size in zip(features, sizes, strict=True))

    def chunk(boxes: jax.Array, levels: jax.Array) -> jax.Array:
        total = jnp.zeros(
            (boxes.shape[0], static.output_size, static.output_size, static.channels), static.accumulation_dtype
        )
        own = taps(static, boxes, levels, sizes)
        for level, array in enumerate(features):
            rows, columns = _weights(static, level, own, levels)
            if array.shape[0] > array.shape[1]:  # The longer axis first, so that less is left between the products.
                part = _product("rph,hwc->rpwc", rows, array).astype(static.dtype)
                total += _product("rqw,rpwc->rpqc", columns, part)
            else:
                part = _product("rqw,hwc->rhqc", columns, array).astype(static.dtype)
                total += _product("rph,rhqc->rpqc", rows, part)
        return total.astype(static.dtype)

    return map_chunks(chunk, _bytes_per_roi(static), boxes, levels)


def _align_forward(static, features, boxes, levels, sizes):  # type: ignore[no-untyped-def]
    return align(static, features, boxes, levels, sizes), (boxes, levels, sizes)


def _align_backward(static, residuals, cotangent):  # type: ignore[no-untyped-def]
    boxes, levels, sizes = residuals

    def chunk(total, boxes, levels, cotangent):  # type: ignore[no-untyped-def]
        sums = []
        own = taps(static, boxes, levels, sizes)
        for level, before in enumerate(total):
            rows, columns = _weights(static, level, own, levels)
            if before.shape[0] > before.shape[1]:
                part = _product("rqw,rpqc->rpwc", columns, cotangent).astype(static.dtype)
                sums.append(before + _product("rph,rpwc->hwc", rows, part))
            else:
                part = _product("rph,rpqc->rhqc", rows, cotangent).astype(static.dtype)
                sums.append(before + _product("rqw,rhqc->hwc", columns, part))
        return tuple(sums)

    zeros = tuple(jnp.zeros(shape, static.accumulation_dtype) for shape in static.shapes)
    total = sum_chunks(chunk, zeros, _bytes_per_roi(static), boxes, levels, cotangent)
    return tuple(array.astype(static.dtype) for array in total), None, None, None


align.defvjp(_align_forward, _align_backward)


def _weights(static: Levels, level: int, own: Taps, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``[k, s, h]`` and ``[k, s, w]``: what each pixel of an axis adds to each bin; zero for the boxes of other levels."""
    member = (levels == level)[:, None, None, None]
    matrices = []
    for axis, (pixels, weights) in enumerate(((own.rows, own.row_weights), (own.columns, own.column_weights))):
        every = jnp.arange(static.shapes[level][axis], dtype=jnp.int32)[None, None, None, :]
        matrix = jnp.where(member & (pixels[..., None] == every), weights[..., None], 0).sum(-2)
        matrices.append(matrix.astype(static.dtype))
    return matrices[0], matrices[1]


def _product(equation: str, weights: jax.Array, array: jax.Array) -> jax.Array:
    total = accumulation_dtype(array.dtype)
    if device_kind().platform == "cpu":  # XLA has no product of 16-bit numbers with a float32 result there, with jax 0.7.
        weights, array = weights.astype(total), array.astype(total)
    return jnp.einsum(equation, weights, array, precision=HIGHEST, preferred_element_type=total)


def _select(array: jax.Array, size: jax.Array) -> jax.Array:
    rows = jnp.arange(array.shape[0], dtype=jnp.int32)[:, None, None] < size[0]
    columns = jnp.arange(array.shape[1], dtype=jnp.int32)[None, :, None] < size[1]
    return jnp.where(rows & columns, array, jnp.zeros((), array.dtype))


def _bytes_per_roi(static: Levels) -> int:
    """Of the array between the two products, at its largest level."""
    shorter = max(min(shape[:2]) for shape in static.shapes)
    return static.output_size * shorter * static.channels * static.accumulation_dtype.itemsize
