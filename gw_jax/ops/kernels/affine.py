"""Scale, bias and mask for implementations that treat every sample alone."""

import jax
import jax.numpy as jnp

from gw_jax.ops.checks import accumulation_dtype


def affine_per_sample(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """``scale`` and ``bias`` ``[c]`` (ones and zeros for None) repeated for every sample of ``x``, ``[n, c]``.

    They are sharded and mapped as ``x`` is. The derivative of the copies is a sum over samples, which JAX adds to the
    program, with the collective that the mesh needs.
    """
    dtype = accumulation_dtype(x.dtype)
    first = x
    for axis in range(1, x.ndim - 1):
        first = jax.lax.slice_in_dim(first, 0, 1, axis=axis)
    # Always true, which XLA folds for integers (a float NaN does not equal itself).
    integer = first.reshape(x.shape[0], x.shape[-1]).astype(jnp.int32)
    always = integer == integer

    def copies(parameter: jax.Array) -> jax.Array:
        row = parameter.astype(dtype).reshape(1, -1)
        # Both branches are equal: the condition only gives the result its sharding, and is gone after compilation.
        return jnp.where(always, row, row)

    one, zero = jnp.ones(x.shape[-1], dtype), jnp.zeros(x.shape[-1], dtype)
    return copies(one if scale is None else scale), copies(zero if bias is None else bias)


def full_mask(x: jax.Array) -> jax.Array:
    """The mask ``[n, h, w]`` that is true everywhere; sharded and mapped as ``x`` ``[n, h, w, c]`` is."""
    integer = jax.lax.slice_in_dim(x, 0, 1, axis=x.ndim - 1).reshape(x.shape[:-1]).astype(jnp.int32)
    return integer == integer  # Folded by XLA, as above.
