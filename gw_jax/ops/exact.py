"""Products and quotients that are rounded once, whatever the compiler joins.

XLA makes products and the sums that follow one operation, and a division by a constant a product. Where a position decides
which pixel is read, the last digit counts. Products of two halves of numbers are exact, and their sum is rounded once,
joined or not.
"""

import jax
import jax.numpy as jnp


def halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x`` as the sum of two numbers, each with at most half of its digits."""
    kind, digits = (jnp.uint64, 27) if x.dtype == jnp.float64 else (jnp.uint32, 12)
    bits = jax.lax.bitcast_convert_type(x, kind)
    upper = jax.lax.bitcast_convert_type((bits >> digits) << digits, x.dtype)
    return upper, x - upper


def times_integer(x: jax.Array, integer: jax.Array | int) -> jax.Array:
    """``x * integer``, rounded once, for integers below 4096."""
    upper, lower = halves(x)
    return integer * upper + integer * lower


def quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, rounded once, also where the device's own division is not; ``x`` and ``y`` have one shape and type."""
    first = x / y
    (a, b), (c, d) = halves(first), halves(y)
    remainder = (((x - a * c) - a * d) - b * c) - b * d
    return first + remainder / y
