"""Group Whitening as a few matrix products per sample, with hand-written derivatives: the formulation for CPUs.

The channels of a group are moved in front of the groups once, ``[n, *spatial, g, d]`` to ``[n, *spatial, d, g]``::

    x      c = 0 1 2 | 3 4 5      two groups (g = 2) of three channels (d = 3)
    rows   (0 3) (1 4) (2 5)      one row of g numbers for every position and channel of a group

so that covariance, application and all derivatives are products of rows that are contiguous in memory.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.checks import accumulation_dtype
from gw_jax.ops.inverse_sqrt import HIGHEST
from gw_jax.ops.kernels.affine import affine_per_sample
from gw_jax.ops.linear_map import linear_map
from gw_jax.ops.sharding import sharding_of_sums
from gw_jax.ops.statistics import SPATIAL_LETTERS, gram

InverseSqrt = Callable[[jax.Array], jax.Array]


def _rows(x: jax.Array, num_groups: int) -> jax.Array:
    """``[..., c]`` as ``[..., d, g]``: a row has one channel of every group."""
    return x.reshape(*x.shape[:-1], num_groups, x.shape[-1] // num_groups).swapaxes(-1, -2)


def _channels(rows: jax.Array) -> jax.Array:
    """Undoes :func:`_rows`."""
    swapped = rows.swapaxes(-1, -2)
    return swapped.reshape(*swapped.shape[:-2], -1)


def _apply(rows: jax.Array, matrices: jax.Array) -> jax.Array:
    """Every row of sample ``n`` times the ``n``-th matrix."""
    axes = SPATIAL_LETTERS[: rows.ndim - 3]
    return jnp.einsum(f"n{axes}cg,ngk->n{axes}ck", rows, matrices, precision=HIGHEST)


def _centre(rows: jax.Array) -> jax.Array:
    """Subtracts the mean row of every sample, exactly zero where all its rows are equal."""
    observed = tuple(range(1, rows.ndim - 1))
    # As in centre_groups.
    shift = rows
    for axis in observed:
        shift = jax.lax.slice_in_dim(shift, 0, 1, axis=axis)
    distance = rows - shift
    return distance - distance.mean(observed, keepdims=True)


def _cross(left: jax.Array, right: jax.Array) -> jax.Array:
    """``[n, g, g]``: of every sample, the sum over its rows of products of a number of ``left`` and one of ``right``."""
    sharding = sharding_of_sums(left)
    if sharding is None:
        # With one axis to sum over, XLA fuses the transposition into the product. An image that is sharded along w is
        # gathered for it.
        left, right = (rows.reshape(rows.shape[0], -1, rows.shape[-1]) for rows in (left, right))
    axes = SPATIAL_LETTERS[: left.ndim - 2]
    return jnp.einsum(f"n{axes}g,n{axes}k->ngk", left, right, precision=HIGHEST, out_sharding=sharding)


def matmul_whiten(
    x: jax.Array,
    num_groups: int,
    inverse_sqrt: InverseSqrt,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """``inverse_sqrt(C) (X - mu) * scale + bias`` for every sample, see :func:`gw_jax.group_whiten`.

    Nothing is computed twice: the backward pass gets the centred and the whitened rows, the whitening matrices and what the
    derivative of ``inverse_sqrt`` keeps, and needs three products over the positions.

    Args:
        x: ``[n, *spatial, c]``, not empty.
        num_groups: divides ``c``.
        inverse_sqrt: gives the whitening matrices of the covariances ``[n, g, g]``; symmetric, differentiable.
        scale: ``[c]``, or None.
        bias: ``[c]``, or None.

    Returns:
        An array of the shape of ``x``, in the type in which ``x`` is accumulated.
    """
    return _whiten(x, *affine_per_sample(x, scale, bias), num_groups, inverse_sqrt)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _whiten(x: jax.Array, scale: jax.Array, bias: jax.Array, num_groups: int, inverse_sqrt: InverseSqrt) -> jax.Array:
    return _forward(x, scale, bias, num_groups, inverse_sqrt)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, num_groups: int, inverse_sqrt: InverseSqrt
) -> tuple[jax.Array, Any]:
    centred = _centre(_rows(x.astype(accumulation_dtype(x.dtype)), num_groups))
    count = math.prod(centred.shape[1:-1])
    # The rows as one channel per group, and the channels of a group as one more spatial axis.
    covariance = gram(centred[..., None]) / count
    whitening, pullback = jax.vjp(inverse_sqrt, covariance)
    white = _apply(centred, whitening)
    per_sample = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
    y = _channels(white) * scale.reshape(per_sample) + bias.reshape(per_sample)
    return y, (centred, white, whitening, pullback, scale)


@_whiten.defjvp
def _whiten_jvp(
    num_groups: int, inverse_sqrt: InverseSqrt, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    x, scale, bias = primals
    y, residuals = _forward(x, scale, bias, num_groups, inverse_sqrt)
    derivative = functools.partial(_derivative, num_groups)
    backward = functools.partial(_backward, num_groups, x.dtype)
    return y, linear_map(derivative, backward, residuals, tangents, like=y)


def _derivative(num_groups: int, residuals: Any, tangents: tuple[jax.Array, ...]) -> jax.Array:
    """The change of the output when input, scale and bias move along ``tangents``."""
    centred, white, whitening, pullback, scale = residuals
    positions = tuple(range(1, centred.ndim - 2))
    count = math.prod(centred.shape[1:-1])
    rows = _rows(tangents[0].astype(centred.dtype), num_groups)
    dscale, dbias, factor = (_rows(parameter, num_groups) for parameter in (*tangents[1:], scale))
    moved = rows - rows.mean((*positions, -2), keepdims=True)
    half = _cross(moved, centred) / count
    (dwhitening,) = jax.linear_transpose(pullback, whitening)((half + jnp.matrix_transpose(half),))
    dwhite = _apply(moved, whitening) + _apply(centred, dwhitening)
    factor, dscale, dbias = (jnp.expand_dims(parameter, positions) for parameter in (factor, dscale, dbias))
    return _channels(dwhite * factor + white * dscale + dbias)


def _backward(num_groups: int, dtype: jnp.dtype, residuals: Any, dy: jax.Array) -> tuple[jax.Array, ...]:
    """The transpose of :func:`_derivative`; nothing of the forward pass is computed again."""
    centred, white, whitening, pullback, scale = residuals
    positions = tuple(range(1, centred.ndim - 2))
    count = math.prod(centred.shape[1:-1])
    rows, factor = _rows(dy, num_groups), _rows(scale, num_groups)
    dscale, dbias = (rows * white).sum(positions), rows.sum(positions)
    rows = rows * jnp.expand_dims(factor, positions)
    (dcovariance,) = pullback(_cross(centred, rows))
    through_covariance = (dcovariance + jnp.matrix_transpose(dcovariance)) / count
    # Rows are centred, so the derivative's mean over them comes from dy alone.
    mean = _apply((dbias * factor).sum(1, keepdims=True), whitening) / count
    dx = _apply(rows, whitening) + _apply(centred, through_covariance) - jnp.expand_dims(mean, positions)
    return _channels(dx).astype(dtype), _channels(dscale), _channels(dbias)
