"""Mean and covariance of the channel groups of every sample, accurate in float32."""

import functools
import math
import string
from collections.abc import Hashable
from typing import Literal

import jax
import jax.numpy as jnp

from gw_jax.ops.inverse_sqrt import HIGHEST
from gw_jax.ops.sharding import sharding_of_sums

SPATIAL_LETTERS = "hw" + "".join(letter for letter in string.ascii_letters if letter not in "nhwgck")

Rows = Literal["groups", "channels"]
_SUBSCRIPTS: dict[Rows, tuple[str, str, str]] = {"groups": ("gc", "kc", "gk"), "channels": ("gc", "gk", "gck")}


def centre_groups(grouped: jax.Array, keep: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Subtracts the mean of each channel group of each sample.

    Args:
        grouped: ``[n, *spatial, g, c/g]``, float32 or float64.
        keep: ``[n, *spatial, 1, 1]``, true where a position counts, or None where all do.

    Returns:
        The centred values, zero where not kept, and the number of observations per group, ``[n, 1, 1]`` (or
        ``[1, 1, 1]`` without ``keep``), at least 1.
    """
    positions = tuple(range(1, grouped.ndim - 2))
    observed = (*positions, grouped.ndim - 1)
    # The mean is that of the distances to one of the values, which costs nothing once fused. A constant group is
    # then exactly zero afterwards, instead of rounding noise that whitening would amplify to unit variance.
    if keep is None:
        shift = grouped
        for axis in observed:
            shift = jax.lax.slice_in_dim(shift, 0, 1, axis=axis)
        distance = grouped - jax.lax.stop_gradient(shift)
        count = jnp.full((1, 1, 1), math.prod(grouped.shape[axis] for axis in observed), grouped.dtype)
        return distance - distance.mean(observed, keepdims=True), count
    # Selected, not multiplied: a masked position may hold NaN.
    grouped = jnp.where(keep, grouped, 0)
    first = jax.lax.slice_in_dim(grouped, 0, 1, axis=grouped.ndim - 1)
    shift = jnp.where(_first_kept(keep, positions), first, 0).sum(positions, keepdims=True)
    distance = jnp.where(keep, grouped - jax.lax.stop_gradient(shift), 0)
    kept = keep.sum(positions, keepdims=True, dtype=grouped.dtype)
    count = jnp.maximum(kept * grouped.shape[-1], 1)
    mean = distance.sum(observed, keepdims=True) / count
    return jnp.where(keep, distance - mean, 0), count.reshape(-1, 1, 1)


def first_values(x: jax.Array, num_groups: int, mask: jax.Array | None = None) -> jax.Array:
    """The first value of every group of every sample, repeated for its channels.

    Distances to it are exactly zero in a constant group. ``[n, *spatial, c]`` becomes ``[n, 1, ..., c]``. With ``mask``
    ``[n, *spatial]``, it is the first one where that is true, and zero where it is nowhere.
    """
    positions = tuple(range(1, x.ndim - 1))
    if mask is not None:
        x = jnp.where(_first_kept(mask[..., None], positions), x, 0).sum(positions, keepdims=True)
    for axis in positions:
        x = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    first = x.reshape(*x.shape[:-1], num_groups, -1)
    return jnp.broadcast_to(first[..., :1], first.shape).reshape(x.shape)


def group_means(sums: jax.Array, num_groups: int, count: jax.Array | float) -> jax.Array:
    """Sums of channels ``[n, c]`` over ``count``, as means of groups, repeated for their channels ``[n, c]``.

    An image that is summed over its positions first, and then over the few channels of a group, is read in its own order.
    """
    grouped = sums.reshape(sums.shape[0], num_groups, -1)
    return jnp.broadcast_to(grouped.sum(-1, keepdims=True) / count, grouped.shape).reshape(sums.shape)


def _first_kept(keep: jax.Array, positions: tuple[int, ...]) -> jax.Array:
    """True at the first kept position of each sample: the shape of ``keep`` ``[n, *spatial, 1, ...]``."""
    order = jnp.zeros(keep.shape, jnp.int32)
    stride = 1
    for axis in reversed(positions):
        order = order + stride * jax.lax.broadcasted_iota(jnp.int32, keep.shape, axis)
        stride *= keep.shape[axis]
    order = jnp.where(keep, order, stride)
    return keep & (order == order.min(positions, keepdims=True))


def psum_if_named(summed: jax.Array, axis_name: Hashable | None) -> jax.Array:
    """The sum over the members of a mapped axis, or ``summed`` itself where there is none."""
    return summed if axis_name is None else jax.lax.psum(summed, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gram(centred: jax.Array, over: Rows = "groups") -> jax.Array:
    """The Gram matrix ``X X^T`` of every sample, summed over all other axes.

    The rows of ``X`` are the groups with ``over="groups"``, which maps ``[n, *spatial, g, c/g]`` to ``[n, g, g]``. With
    ``over="channels"`` every group has an ``X`` of its own, whose rows are its channels: ``[n, g, c/g, c/g]``.

    XLA's CPU compiler adds products sequentially. On images, where a large background gives thousands of equal
    products, the rounding errors all have one sign: on MNIST digits (784 positions) the sum was wrong by 5e-6, the
    whitened value by 1e-4. There, every row of the image is summed first, and then their sums, which leaves 8e-6.
    Accelerators add in blocks already.
    """
    return jax.lax.platform_dependent(
        centred, cpu=functools.partial(_sum_rows_first, over), default=functools.partial(_sum_at_once, over)
    )


def _sum_at_once(over: Rows, x: jax.Array) -> jax.Array:
    return _products(over, x, x)


def _sum_rows_first(over: Rows, x: jax.Array) -> jax.Array:
    if x.ndim == 3:
        return _products(over, x, x)
    left, right, result = _SUBSCRIPTS[over]
    axes = SPATIAL_LETTERS[: x.ndim - 3]
    products = f"n{axes}{left},n{axes}{right}->n{axes[0]}{result}"
    return jnp.einsum(products, x, x, precision=HIGHEST).sum(1)


def _products(over: Rows, x: jax.Array, y: jax.Array) -> jax.Array:
    left, right, result = _SUBSCRIPTS[over]
    axes = SPATIAL_LETTERS[: x.ndim - 3]
    products = f"n{axes}{left},n{axes}{right}->n{result}"
    return jnp.einsum(products, x, y, precision=HIGHEST, out_sharding=sharding_of_sums(x))


@gram.defjvp
def _gram_jvp(over: Rows, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    # The transpose is a single product, (G + G^T) X, which sums over the few groups or channels only.
    half = _products(over, tangent, x)
    return gram(x, over), half + jnp.matrix_transpose(half)
