"""Number formats and checks of arrays that the operations and layers share, and what kernels do alike."""

from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The type in which statistics of a ``dtype`` array are computed: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64) if jnp.dtype(dtype) == jnp.float64 else jnp.dtype(jnp.float32)


def applied(rows: jax.Array, matrix: jax.Array, dot: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """``dot(rows, matrix)`` for a float32 matrix, which counts in full where the rows are bfloat16."""
    if rows.dtype == jnp.float32:
        return dot(rows, matrix)
    upper = matrix.astype(rows.dtype)
    lower = (matrix - upper.astype(jnp.float32)).astype(rows.dtype)
    return dot(rows, upper) + dot(rows, lower)


def result_like(x: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """What a kernel gives that was called for ``x``: in ``jax.shard_map`` it varies over the devices as ``x`` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def psum_if_named(summed: jax.Array, axis_name: Hashable | None) -> jax.Array:
    """The sum over the members of a mapped axis, or ``summed`` itself where there is none."""
    return summed if axis_name is None else jax.lax.psum(summed, axis_name)


def require_floating(x: jax.Array, operation: str) -> None:
    """Raises TypeError unless ``x`` holds real floating-point numbers.

    Integers are refused rather than cast: a uint8 image that was never normalised is the usual cause.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{operation} got an array of type {x.dtype} and shape {x.shape}; it takes real floating-point "
            "types (float16, bfloat16, float32, float64). Cast or normalise the input first."
        )


def require_mask_shape(x: jax.Array, mask: jax.Array | None) -> None:
    """Raises ValueError unless ``mask``, if there is one, has one entry for every position of ``x``."""
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(
            f"mask has shape {mask.shape} for an input of shape {x.shape}; it must be {x.shape[:-1]}, one entry "
            "for every position of every sample."
        )
