"""Group Whitening as it is defined, with the derivatives that JAX makes of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gw_jax.ops.checks import accumulation_dtype
from gw_jax.ops.inverse_sqrt import HIGHEST
from gw_jax.ops.statistics import SPATIAL_LETTERS, centre_groups, sum_of_products

InverseSqrt = Callable[[jax.Array], jax.Array]


def plain_whiten(
    x: jax.Array,
    num_groups: int,
    inverse_sqrt: InverseSqrt,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """The definition, in the type in which ``x`` is accumulated; see :func:`gw_jax.group_whiten`.

    ``inverse_sqrt`` gives the whitening matrices of covariances ``[n, g, g]``. ``scale`` and ``bias`` are ``[c]``, or
    ``[n, c]`` for every sample its own.
    """
    # Splitting the last axis keeps the sharding of all the others; h and w are never merged.
    num_features = x.shape[-1]
    grouped = x.astype(accumulation_dtype(x.dtype)).reshape(*x.shape[:-1], num_groups, num_features // num_groups)
    keep = None if mask is None else mask.astype(bool)[..., None, None]
    centred, count = centre_groups(grouped, keep)
    whitening = inverse_sqrt(sum_of_products(centred) / count)
    spatial = SPATIAL_LETTERS[: x.ndim - 2]
    y = jnp.einsum(f"ngk,n{spatial}kc->n{spatial}gc", whitening, centred, precision=HIGHEST).reshape(x.shape)

    def per_channel(parameter: jax.Array) -> jax.Array:
        samples = x.shape[0] if parameter.ndim == 2 else 1
        return parameter.astype(y.dtype).reshape(samples, *(1,) * (x.ndim - 2), num_features)

    if scale is not None:
        y = y * per_channel(scale)
    if bias is not None:
        y = y + per_channel(bias)
        if mask is not None:
            y = jnp.where(mask.astype(bool)[..., None], y, 0)
    return y


def affine_per_sample(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """``scale`` and ``bias`` ``[c]`` (ones and zeros for None) for every sample of ``x``, ``[n, c]``.

    They are split over devices and mapped as ``x`` is. The derivative of the copies is the sum over samples, which JAX then
    places as the mesh wants it.
    """
    dtype = accumulation_dtype(x.dtype)
    first = x
    for axis in range(1, x.ndim - 1):
        first = jax.lax.slice_in_dim(first, 0, 1, axis=axis)
    # True for integers, whatever they are, as the compiler knows; a float that is NaN does not equal itself.
    integer = first.reshape(x.shape[0], x.shape[-1]).astype(jnp.int32)
    always = integer == integer

    def copies(parameter: jax.Array) -> jax.Array:
        row = parameter.astype(dtype).reshape(1, -1)
        # Both branches are the same; the condition only lends its sharding. The compiler removes it, there and backward.
        return jnp.where(always, row, row)

    one, zero = jnp.ones(x.shape[-1], dtype), jnp.zeros(x.shape[-1], dtype)
    return copies(one if scale is None else scale), copies(zero if bias is None else bias)
