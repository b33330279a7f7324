"""Whitening of channel groups over a batch: moments, whitening matrices and their application, as pure functions.

Arrays are ``[s, b, *spatial, k, d]``: ``s`` sets of ``b`` examples that share statistics, ``k`` groups of ``d`` channels.
Where the channels are no multiple of ``d`` the last group is padded; ``real`` ``[k, d]`` is true at its real channels.
"""

import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax.ops.inverse_sqrt import HIGHEST, inverse_sqrt_newton, inverse_sqrt_zca
from gw_jax.ops.options import Method
from gw_jax.ops.statistics import SPATIAL_LETTERS, gram, psum_if_named

# The reference's IterNorm and DBN, added to the diagonal of the covariance.
DEFAULT_BATCH_EPSILON: dict[str, float] = {"newton": 1e-5, "zca": 1e-3}


def group_channels(x: jax.Array, num_groups: int, channels_per_group: int) -> jax.Array:
    """Cuts the last axis of ``x`` into ``[k, d]``; the last group is padded with zeros."""
    missing = num_groups * channels_per_group - x.shape[-1]
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return x.reshape(*x.shape[:-1], num_groups, channels_per_group)


def ungroup_channels(grouped: jax.Array, num_features: int) -> jax.Array:
    """Undoes :func:`group_channels`."""
    joined = grouped.reshape(*grouped.shape[:-2], -1)
    return joined if joined.shape[-1] == num_features else joined[..., :num_features]


def real_channels(num_features: int, num_groups: int, channels_per_group: int) -> np.ndarray:
    """``[k, d]``, true where :func:`group_channels` put a channel and false where it padded."""
    return np.arange(num_groups * channels_per_group).reshape(num_groups, channels_per_group) < num_features


def centre_batch(
    grouped: jax.Array, keep: jax.Array | None, axis_name: Hashable | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Subtracts the mean of every channel over each set of examples.

    Args:
        grouped: ``[s, b, *spatial, k, d]``, float32 or float64.
        keep: ``[s, b, *spatial, 1, 1]``, true where a position counts, or None where all do.
        axis_name: mapped axis whose members' examples belong to the same sets. They may differ in what they keep.

    Returns:
        The centred values, zero where not kept; the means ``[s, k, d]``; the number of observations ``[s]``, which may
        be zero.
    """
    observed = tuple(range(1, grouped.ndim - 2))
    if keep is None:
        count = jnp.full(grouped.shape[:1], math.prod(grouped.shape[axis] for axis in observed), grouped.dtype)
    else:
        # Selected, not multiplied: a masked position may hold NaN.
        grouped = jnp.where(keep, grouped, 0)
        count = keep.sum((*observed, -2, -1), dtype=grouped.dtype)
    count = psum_if_named(count, axis_name)
    divisor = jnp.maximum(count, 1).reshape(-1, *(1,) * (grouped.ndim - 1))
    mean = psum_if_named(grouped.sum(observed, keepdims=True), axis_name) / divisor
    centred = grouped - mean
    if keep is not None:
        centred = jnp.where(keep, centred, 0)
    return centred, mean.reshape(mean.shape[0], *mean.shape[-2:]), count


def batch_covariance(centred: jax.Array, count: jax.Array, axis_name: Hashable | None = None) -> jax.Array:
    """The biased covariance ``[s, k, d, d]`` of what :func:`centre_batch` returned."""
    products = psum_if_named(gram(centred, "channels"), axis_name)
    return products / jnp.maximum(count, 1).reshape(-1, 1, 1, 1)


def whitening_matrix(
    covariance: jax.Array, real: np.ndarray, *, method: Method, num_iterations: int, epsilon: float
) -> jax.Array:
    """``(covariance + epsilon I)^(-1/2)`` of every group, the identity where it is padded.

    Args:
        covariance: ``[s, k, d, d]``, zero where it is padded.
        real: ``[k, d]``, true at real channels.
        method: "newton" (:func:`inverse_sqrt_newton`) or "zca" (:func:`inverse_sqrt_zca`).
        num_iterations: Newton-Schulz iterations; not used by "zca".
        epsilon: added to the diagonal; > 0 for "zca".
    """
    size = real.shape[-1]
    identity = np.eye(size, dtype=covariance.dtype)
    ragged = not real.all()
    if method == "newton":
        # Only real channels: the iteration divides by the trace.
        if epsilon:
            covariance = covariance + jnp.asarray(epsilon * identity * real[..., None])[None]
        whitening = inverse_sqrt_newton(covariance, num_iterations)
    else:
        if ragged:
            # Eigenvalues as large as the others lose no digits to them, and the blocks do not mix.
            trace = jnp.trace(covariance, axis1=-2, axis2=-1) / jnp.asarray(real.sum(-1), covariance.dtype)[None]
            padding = jnp.asarray(identity * ~real[..., None])[None]
            covariance = covariance + padding * jax.lax.stop_gradient(trace)[..., None, None]
        whitening = inverse_sqrt_zca(covariance, epsilon)
    return with_identity_padding(whitening, real) if ragged else whitening


def with_identity_padding(matrices: jax.Array, real: np.ndarray) -> jax.Array:
    """``matrices`` ``[..., k, d, d]`` with the identity where rows or columns are padded."""
    both = (real[..., :, None] & real[..., None, :]).reshape((1,) * (matrices.ndim - 3) + (*real.shape, real.shape[-1]))
    identity = np.eye(real.shape[-1], dtype=matrices.dtype).reshape((1,) * (matrices.ndim - 2) + (real.shape[-1],) * 2)
    return jnp.where(both, matrices, identity)


def apply_whitening(whitening: jax.Array, centred: jax.Array) -> jax.Array:
    """``W x`` at every position: ``[s, k, d, d]`` and ``[s, b, *spatial, k, d]`` to the shape of the latter."""
    axes = SPATIAL_LETTERS[: centred.ndim - 3]
    return jnp.einsum(f"ngck,n{axes}gk->n{axes}gc", whitening, centred, precision=HIGHEST)
