"""Newton-Schulz iterations for plain XLA: few arrays in memory, and the short derivative.

Between two products XLA writes every matrix to memory. This form of the iteration has one small operation and three
products, without transposes or copies. With ``S`` the normalised covariance, ``alpha_0 = S``, ``P_0 = I`` and
``s_k = 2.25^k / 3``::

    Q_k = I - s_k alpha_k,   alpha_{k+1} = Q_k (Q_k alpha_k),   P_{k+1} = P_k Q_k,   result = 1.5^T P_T

which is the coupled form of :func:`gw_jax.ops.inverse_sqrt.inverse_sqrt_newton` with ``P Y = 3 s alpha`` and the factors
1.5 taken out. An error in ``Q_k`` enters both sequences, so that later iterations correct it as they do there.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gw_jax.ops.inverse_sqrt import (
    HIGHEST,
    NEWTON_LINEAR,
    derivative_by_covariance,
    identity_like,
    inverse_sqrt_newton,
    normalise,
    supports_vjp,
)
from gw_jax.ops.linear_map import linear_map

_FIRST, _GROWTH = 1 / 3, NEWTON_LINEAR**2

_dot = functools.partial(jnp.matmul, precision=HIGHEST)


class _Step(NamedTuple):
    """An iteration: ``alpha_k``, ``Q_k``, and ``P_k``, or None for the identity."""

    alpha: jax.Array
    q: jax.Array
    p: jax.Array | None


class _Residuals(NamedTuple):
    trace: jax.Array
    steps: list[_Step]
    whitening: jax.Array


def _newton(covariance: jax.Array, num_iterations: int, epsilon: float) -> tuple[jax.Array, _Residuals]:
    alpha, trace = normalise(covariance, epsilon)
    identity = identity_like(alpha)
    p: jax.Array | None = None
    steps: list[_Step] = []
    for k in range(num_iterations):
        q = identity - _scale(k) * alpha
        steps.append(_Step(alpha, q, p))
        if k < num_iterations - 1:
            alpha = _dot(q, _dot(q, alpha))
        # The other way round, XLA would join it with a product above by copies of their factors.
        p = q if p is None else _dot(p, q)
    assert p is not None  # There are at least two iterations.
    whitening = (NEWTON_LINEAR**num_iterations * jax.lax.rsqrt(trace)) * p
    return whitening, _Residuals(trace, steps, whitening)


def _scale(k: int) -> float:
    return _FIRST * _GROWTH**k


def _derivative_of_iterates(steps: list[_Step], direction: jax.Array) -> jax.Array:
    """The change of the last ``P``, symmetric, as the normalised covariance moves along ``direction``, symmetric."""
    dalpha, dp = direction, jnp.zeros_like(direction)
    for k, (alpha, q, p) in enumerate(steps):
        s = _scale(k)
        dp = -s * dalpha if p is None else _dot(q, dp) + -s * _dot(dalpha, p)
        if k < len(steps) - 1:
            # alpha' = alpha - 2 s alpha^2 + s^2 alpha^3.
            change = _dot(alpha, dalpha)
            cubic = _dot(alpha, change + 0.5 * jnp.matrix_transpose(change))
            dalpha = dalpha - 2 * s * _symmetric(change) + s**2 * _symmetric(cubic)
    return 0.5 * NEWTON_LINEAR ** len(steps) * _symmetric(dp)


def _symmetric(matrix: jax.Array) -> jax.Array:
    return matrix + jnp.matrix_transpose(matrix)


def _vjp(residuals: _Residuals, cotangent: jax.Array) -> jax.Array:
    """The gradient by the covariance, symmetric."""
    trace, steps, whitening = residuals
    cotangent = 0.5 * _symmetric(cotangent)
    through = _derivative_of_iterates(steps, cotangent)
    return derivative_by_covariance(through, cotangent, steps[0].alpha, whitening, trace)


def _jvp(residuals: _Residuals, direction: jax.Array) -> jax.Array:
    """The change of the whitening matrix when the covariance moves along ``direction``; uses its symmetric part."""
    trace, steps, whitening = residuals
    direction = 0.5 * _symmetric(direction) / trace
    dtrace = jnp.trace(direction, axis1=-2, axis2=-1)[..., None, None]
    through = _derivative_of_iterates(steps, direction - steps[0].alpha * dtrace)
    return jax.lax.rsqrt(trace) * through - 0.5 * whitening * dtrace


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _inverse_sqrt(covariance: jax.Array, num_iterations: int, epsilon: float) -> jax.Array:
    return _newton(covariance, num_iterations, epsilon)[0]


@_inverse_sqrt.defjvp
def _inverse_sqrt_jvp(
    num_iterations: int, epsilon: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    whitening, residuals = _newton(*primals, num_iterations, epsilon)
    return whitening, linear_map(_jvp, _vjp, residuals, *tangents, like=whitening)


def inverse_sqrt_newton_vjp(covariance: jax.Array, num_iterations: int, epsilon: float) -> jax.Array:
    """:func:`inverse_sqrt_newton` with the short derivative, which assumes that the covariance stays symmetric."""
    if supports_vjp(num_iterations):
        return _inverse_sqrt(covariance, num_iterations, epsilon)
    return inverse_sqrt_newton(covariance, num_iterations, epsilon)
