"""Products and result types that the kernels of all platforms share."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Dot = Callable[[jax.Array, jax.Array], jax.Array]


def dot_full_precision_matrix(rows: jax.Array, matrix: jax.Array, dot: Dot) -> jax.Array:
    """``dot(rows, matrix)`` with all digits of a float32 ``matrix``, also where the rows are bfloat16.

    The matrix is then the sum of two bfloat16 matrices.
    """
    if rows.dtype == jnp.float32:
        return dot(rows, matrix)
    upper = matrix.astype(rows.dtype)
    lower = (matrix - upper.astype(jnp.float32)).astype(rows.dtype)
    return dot(rows, upper) + dot(rows, lower)


def result_like(x: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """The type of a kernel's result for the input ``x``: in ``jax.shard_map`` it varies over the devices as ``x`` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
