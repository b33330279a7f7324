"""Checks of arrays and options that the operations and layers share, and the type of their statistics."""

import math
import operator
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The type in which statistics of a ``dtype`` array are computed: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64) if jnp.dtype(dtype) == jnp.float64 else jnp.dtype(jnp.float32)


def as_floating(x: ArrayLike, operation: str) -> jax.Array:
    """``x`` as a JAX array of real floating-point numbers.

    Integers are refused rather than cast: a uint8 image that was never normalised is the usual cause. A float64 NumPy
    array becomes float32 where JAX has no float64, with a warning. Lists are accepted.

    Raises:
        TypeError: ``x`` holds other numbers.
    """
    if isinstance(x, np.ndarray) and x.dtype == np.float64 and jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
        warnings.warn(
            f"{operation} got a float64 NumPy array and computes in float32, since JAX's float64 is switched off. Pass "
            "x.astype(numpy.float32), or set jax.config.update('jax_enable_x64', True).",
            stacklevel=3,
        )
    if not hasattr(x, "dtype"):
        x = jnp.asarray(x)
    require_floating(x, operation)
    return jnp.asarray(x)


def require_floating(x: Any, operation: str) -> None:
    """Raises TypeError unless ``x`` holds real floating-point numbers."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{operation} got an array of type {x.dtype} and shape {x.shape}; it accepts real floating-point "
            "types (float16, bfloat16, float32, float64). Cast or normalise the input first."
        )


def require_mask_shape(x: jax.Array, mask: jax.Array | None) -> None:
    """Raises ValueError unless ``mask``, if there is one, has one entry for every position of ``x``."""
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(
            f"mask has shape {mask.shape} for an input of shape {x.shape}; it must be {x.shape[:-1]}, one entry "
            "for every position of every sample."
        )


def require_integer(name: str, value: Any, minimum: int) -> int:
    """``value`` as an int.

    Raises:
        ValueError: it is no integer (a bool is none, and neither is 8.0), or below ``minimum``.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} is a {type(value).__name__}; it must be an integer.") from None
    if number < minimum:
        raise ValueError(f"{name}={number}; it must be {minimum} or more.")
    return number


def require_epsilon(epsilon: float, *, positive: bool = False, of: str = "") -> float:
    """``epsilon``, which is added to a variance.

    Args:
        epsilon: a finite number of at least zero.
        positive: whether it must be above zero.
        of: what it belongs to, for the message, such as " with method='zca'".

    Raises:
        ValueError: it is negative, NaN or infinite; or zero where it must be positive.
    """
    if not math.isfinite(epsilon) or epsilon < 0 or (positive and epsilon == 0):
        raise ValueError(f"epsilon={epsilon}{of}; epsilon must be finite and {'> 0' if positive else '>= 0'}.")
    return epsilon


def in_double_precision() -> bool:
    """Whether ``jax_enable_x64`` is set."""
    return jnp.result_type(float) == jnp.float64
