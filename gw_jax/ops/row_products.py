"""Group Whitening as a few matrix products per sample, with hand-written derivatives: the formulation in plain XLA.

The channels of a group are moved in front of the groups once, ``[n, *spatial, g, d]`` to ``[n, *spatial, d, g]``::

    x      c = 0 1 2 | 3 4 5      two groups (g = 2) of three channels (d = 3)
    rows   (0 3) (1 4) (2 5)      one row of g numbers for every position and channel of a group

so that covariance, application and all derivatives are products of rows that are contiguous in memory. Masked positions are
rows of zeros, which take no part in any of them.

On accelerators the rows have the type of the input, are rounded once, after centring, and products are accumulated in
float32. Means leave the derivative before it is rounded, too. Statistics and iterations are in float32. Rows of float16 are
multiplied by a power of two per sample, so that centred values, matrices and derivatives stay inside its range.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gw_jax.ops.checks import accumulation_dtype
from gw_jax.ops.kernels.affine import affine_per_sample
from gw_jax.ops.linear_map import linear_map
from gw_jax.ops.rows import (
    InverseSqrt,
    Plan,
    apply,
    between_groups,
    between_numbers,
    channels_of,
    channels_pay,
    cross,
    over,
    per_position,
    rows_of,
)
from gw_jax.ops.statistics import centre_groups, first_values, gram, group_means


class _Residuals(NamedTuple):
    """What the derivatives need of the forward pass.

    Attributes:
        rows: centred values ``[n, *spatial, d, g]``, times ``unit``.
        unit: powers of two ``[n, 1, 1]``, or None where they are 1.
        white: whitened values in the order of the input, or None with one channel per group.
        whitening: ``[n, g, g]``.
        pullback: the derivative of ``inverse_sqrt``.
        scale: ``[n, c]``.
        observations: of a group ``[n or 1, 1, 1]``.
        mask: ``[n, *spatial]``, or None.
    """

    rows: jax.Array
    unit: jax.Array | None
    white: jax.Array | None
    whitening: jax.Array
    pullback: Any
    scale: jax.Array
    observations: jax.Array
    mask: jax.Array | None


def matmul_whiten(
    x: jax.Array,
    num_groups: int,
    inverse_sqrt: InverseSqrt,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    factors: DTypeLike,
    platform: str,
) -> jax.Array:
    """``inverse_sqrt(C) (X - mu) * scale + bias`` for every sample, see :func:`gw_jax.group_whiten`.

    Nothing is computed twice: the backward pass gets the centred rows, the whitening matrices and what the derivative of
    ``inverse_sqrt`` keeps, and needs three products over the positions.

    Args:
        x: ``[n, *spatial, c]``, not empty.
        num_groups: divides ``c``.
        inverse_sqrt: gives the whitening matrices of the covariances ``[n, g, g]``; symmetric, differentiable.
        mask: ``[n, *spatial]``, or None.
        scale: ``[c]``, or None.
        bias: ``[c]``, or None.
        factors: type of the factors of products over positions: that of ``x``, or the one in which it is accumulated.
        platform: of the device, "cpu", "gpu" or "tpu".

    Returns:
        An array of the shape of ``x``, in the type in which ``x`` is accumulated.
    """
    row = x.shape[-1] if channels_pay(x.shape, platform) else num_groups
    plan = Plan(num_groups, row, inverse_sqrt, jnp.dtype(factors), platform)
    return _whiten(x, *affine_per_sample(x, scale, bias), None if mask is None else mask.astype(bool), plan)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _whiten(x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, plan: Plan) -> jax.Array:
    return _forward(x, scale, bias, mask, plan)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, plan: Plan
) -> tuple[jax.Array, _Residuals]:
    values, count, unit = _centre(x, mask, plan)
    rows = rows_of(values, plan, unit)
    covariance = (gram(rows[..., None]) if plan.platform == "cpu" else cross(rows, rows, plan)) / count
    covariance = between_groups(covariance, plan)
    if unit is not None:
        covariance = covariance / unit / unit
    whitening, pullback = jax.vjp(plan.inverse_sqrt, covariance)
    matrix = over(between_numbers(whitening, plan), unit)
    if x.shape[-1] == plan.num_groups:
        white = None
        y = channels_of(apply(rows, matrix * scale[:, None, :])).astype(count.dtype)
    else:
        white = channels_of(apply(rows, matrix))
        y = white.astype(count.dtype) * per_position(scale, x)
    y = _select(y + per_position(bias, x), mask)
    return y, _Residuals(rows, unit, white, whitening, pullback, scale, count, mask)


@_whiten.defjvp
def _whiten_jvp(plan: Plan, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    x, scale, bias, mask = primals
    y, residuals = _forward(x, scale, bias, mask, plan)
    derivative = functools.partial(_derivative, plan)
    backward = functools.partial(_backward, plan, x.dtype)
    return y, linear_map(derivative, backward, residuals, tangents[:3], like=y)


def _derivative(plan: Plan, residuals: _Residuals, tangents: tuple[jax.Array, ...]) -> jax.Array:
    """The change of the output when input, scale and bias move along ``tangents``."""
    rows, unit, white, whitening, pullback, scale, count, mask = residuals
    dx, dscale, dbias = tangents
    values, _, dunit = _centre(dx, mask, plan)
    moved = rows_of(values, plan, dunit)
    if white is None:
        white = channels_of(apply(rows, over(between_numbers(whitening, plan), unit)))
    half = between_groups(over(over(cross(moved, rows, plan) / count, unit), dunit), plan)
    (dwhitening,) = jax.linear_transpose(pullback, whitening)((half + jnp.matrix_transpose(half),))
    whitening, dwhitening = between_numbers(whitening, plan), between_numbers(dwhitening, plan)
    # Both products have the size of the output where the matrices take the units.
    dwhite = apply(moved, over(whitening, dunit)).astype(count.dtype)
    dwhite = dwhite + apply(rows, over(dwhitening, unit)).astype(count.dtype)
    factor, dscale, dbias = (per_position(parameter, dx) for parameter in (scale, dscale, dbias))
    return _select(channels_of(dwhite) * factor + white.astype(count.dtype) * dscale + dbias, mask)


def _backward(plan: Plan, dtype: jnp.dtype, residuals: _Residuals, dy: jax.Array) -> tuple[jax.Array, ...]:
    """The transpose of :func:`_derivative`; nothing of the forward pass is computed again."""
    rows, unit, white, whitening, pullback, scale, count, mask = residuals
    positions = tuple(range(1, dy.ndim - 1))
    dy = _select(dy, mask)
    dbias = dy.sum(positions)
    # XLA joins products that share a factor by copies of the others. These would be such products of the forward pass, if
    # nothing said that they come later.
    dbias, _ = jax.lax.optimization_barrier((dbias, whitening if white is None else white))
    if white is None:
        # The matrices take the scale, and the product with their derivative gives that of the scale.
        values, total, matrix = dy, dbias, whitening * scale[:, None, :]
    else:
        values, total, matrix = dy * per_position(scale, dy), dbias * scale, between_numbers(whitening, plan)
        dscale = (dy * white.astype(dy.dtype)).sum(positions)
    dunit = None
    if plan.narrow:
        dunit = _unit((values * values).sum((*positions, -1)) / (count[:, 0, 0] * plan.num_groups))
    values = values - per_position(group_means(total, plan.num_groups, count), dy)
    moved = rows_of(_select(values, mask), plan, dunit)
    dwhitening = between_groups(over(over(cross(rows, moved, plan), unit), dunit), plan)
    if white is None:
        dscale = (whitening * dwhitening).sum(1)
        dwhitening = dwhitening * scale[:, None, :]
    (dcovariance,) = pullback(dwhitening)
    through_covariance = (dcovariance + jnp.matrix_transpose(dcovariance)) / count
    matrix, through_covariance = over(matrix, unit), over(over(through_covariance, unit), unit)
    if dunit is not None:
        through_covariance = through_covariance * dunit
    through_covariance = between_numbers(through_covariance, plan)
    dx = channels_of(apply(moved, matrix, transposed=True) + apply(rows, through_covariance))
    if unit is not None and dunit is not None:
        dx = dx.astype(count.dtype) * per_position((unit / dunit)[..., 0], dx)
    return dx.astype(dtype), dscale, dbias


def _centre(x: jax.Array, mask: jax.Array | None, plan: Plan) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Subtracts the mean of every group of every sample, exactly where all its values are equal.

    Returns:
        The centred values in the order of ``x``, zero where masked; the number of observations per group
        ``[n or 1, 1, 1]``; and powers of two ``[n, 1, 1]`` that bring them into the range of the factors, or None.
    """
    x = x.astype(accumulation_dtype(x.dtype))
    positions = tuple(range(1, x.ndim - 1))
    d = x.shape[-1] // plan.num_groups
    if mask is not None:
        centred, count = centre_groups(x.reshape(*x.shape[:-1], plan.num_groups, d), mask[..., None, None])
        centred = centred.reshape(x.shape)
        if not plan.narrow:
            return centred, count, None
        return centred, count, _unit((centred * centred).sum((*positions, -1)) / (count[:, 0, 0] * plan.num_groups))
    count = jnp.full((1, 1, 1), math.prod(x.shape[1:]) // plan.num_groups, x.dtype)
    # As in centre_groups, in the order of x, so that XLA reads x twice and writes the rows.
    shift = first_values(x, plan.num_groups)
    distance = x - shift
    mean, unit = group_means(distance.sum(positions), plan.num_groups, count), None
    if plan.narrow:
        square = (distance * distance).sum(positions) * (1 / math.prod(x.shape[1:-1]))
        # A first value far from the rest makes the difference of the two inexact. It only has to be of the right size.
        unit = _unit(jnp.maximum(square - mean * mean, 1e-6 * square).mean(-1))
    # Without the barrier XLA writes the distances to memory.
    shift, mean = jax.lax.optimization_barrier((shift, mean))
    return (x - shift) - per_position(mean, x), count, unit


def _unit(mean_square: jax.Array) -> jax.Array:
    """The power of two closest to the inverse root of ``mean_square`` ``[n]``, and 1 for zero, as ``[n, 1, 1]``."""
    usable = (mean_square > 0) & jnp.isfinite(mean_square)
    root = jax.lax.rsqrt(jnp.where(usable, mean_square, 1))
    return jax.lax.reduce_precision(root, 8, 0).reshape(-1, 1, 1)


def _select(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    # Selected, not multiplied: a masked position may hold NaN.
    return x if mask is None else jnp.where(mask[..., None], x, 0)
