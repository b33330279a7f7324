import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.ops.exact import halves, quotient, times_integer


def numbers(dtype, count=20000):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((2, count)) * np.exp(rng.uniform(-8, 8, (2, count)))).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_result_is_rounded_once(dtype, float64):
    """As NumPy does, one operation at a time. XLA alone joins the product and the sum."""
    x, y = numbers(dtype)
    joined = jax.jit(lambda x, y: times_integer(x, 13) + y)(x, y)
    assert joined.dtype == dtype
    np.testing.assert_array_equal(joined, x * x.dtype.type(13) + y)
    np.testing.assert_array_equal(jax.jit(quotient)(x, y), x / y)
    divided = jax.jit(lambda x: quotient(x, jnp.full_like(x, 7)))(x)
    np.testing.assert_array_equal(divided, x / x.dtype.type(7))


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 12), ("float64", 26)])
def test_halves_have_half_of_the_digits(dtype, digits, float64):
    x, _ = numbers(dtype)
    upper, lower = map(np.asarray, jax.jit(halves)(x))
    np.testing.assert_array_equal(upper.astype(np.longdouble) + lower, x)
    assert (np.abs(lower) < np.abs(x) * 2.0 ** (1 - digits)).all()
    np.testing.assert_array_equal(upper * upper, upper.astype(np.longdouble) ** 2)
