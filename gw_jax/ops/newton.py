"""Newton-Schulz iterations with a derivative that costs fewer products than differentiating them.

All iterates are polynomials of one symmetric matrix: they are symmetric and commute, and the derivative of such a function
is its own transpose. So the derivative by the covariance of ``<E, W(C)>`` is the change of ``W`` when ``C`` moves along
``E``, which the iteration can carry along: 16 products for 5 iterations, where reverse mode takes 24, and nothing is kept.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.inverse_sqrt import FIRST_GUARDED_ITERATION, HIGHEST, NEWTON_CUBIC, NEWTON_LINEAR, inverse_sqrt_newton
from gw_jax.ops.linear_map import linear_map

Dot = Callable[[jax.Array, jax.Array], jax.Array]


def has_short_derivative(num_iterations: int) -> bool:
    """Whether this module takes that many iterations; the guard of :func:`inverse_sqrt_newton` is not in it."""
    return 2 <= num_iterations < FIRST_GUARDED_ITERATION


def identity_like(matrix: jax.Array) -> jax.Array:
    """``[..., g, g]``, made of iotas: kernels take no constants."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, matrix.shape, matrix.ndim - axis) for axis in (2, 1))
    return (rows == columns).astype(matrix.dtype)


def _total(matrix: jax.Array) -> jax.Array:
    """The sum of all entries ``[..., 1, 1]``, one axis at a time, as GPU kernels need it."""
    return matrix.sum(-1, keepdims=True).sum(-2, keepdims=True)


def normalise(covariance: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """``C / tr(C)`` and ``tr(C)`` ``[..., 1, 1]`` of ``C = covariance + epsilon I``; 1 for a trace of zero."""
    identity = identity_like(covariance)
    if epsilon:
        covariance = covariance + epsilon * identity
    trace = _total(covariance * identity)
    trace = jnp.where(trace == 0, 1.0, trace)
    return covariance / trace, trace


def iterates(normalised: jax.Array, num_iterations: int, dot: Dot) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields ``(P_k, M_k)`` of ``P_{k+1} = M_k P_k`` for ``k = 0 .. T-1``, in the coupled form, without its guard.

    ``P_0`` is the identity, and no product is spent on it.
    """
    identity = identity_like(normalised)
    step = NEWTON_LINEAR * identity + NEWTON_CUBIC * normalised
    yield identity, step
    p, y = step, dot(normalised, step)
    for iteration in range(1, num_iterations):
        step = NEWTON_LINEAR * identity + NEWTON_CUBIC * dot(p, y)
        yield p, step
        if iteration < num_iterations - 1:
            p, y = dot(step, p), dot(y, step)


def whitening_of(last: tuple[jax.Array, jax.Array], trace: jax.Array, dot: Dot) -> jax.Array:
    """``C^(-1/2)`` from the last of :func:`iterates`, of two or more."""
    p, step = last
    return jax.lax.rsqrt(trace) * dot(step, p)


def derivative_of_iterates(pairs: Iterable[tuple[jax.Array, jax.Array]], direction: jax.Array, dot: Dot) -> jax.Array:
    """How ``P_T`` changes when the normalised matrix moves along ``direction``, symmetric; uses up :func:`iterates`.

    With ``H = M_k``, ``M_{k+1} = 1.5 I - 1.5 H^2 + H^3``, whose change for a change ``D`` of ``H`` is
    ``-1.5 (X + X^T) + Z + Z^T`` with ``X = H D`` and ``Z = H (X + X^T / 2)``.
    """
    dstep = dp = NEWTON_CUBIC * direction
    before = None
    for p, step in pairs:
        if before is not None:
            change = dot(before, dstep)
            cubic = dot(before, change + 0.5 * _transposed(change))
            dstep = cubic + _transposed(cubic) - NEWTON_LINEAR * (change + _transposed(change))
            dp = dot(dp, step) + dot(p, dstep)
        before = step
    return 0.5 * (dp + _transposed(dp))


def derivative_by_covariance(
    through_iterates: jax.Array, cotangent: jax.Array, normalised: jax.Array, whitening: jax.Array, trace: jax.Array
) -> jax.Array:
    """The derivative of ``<cotangent, C^(-1/2)>`` by the covariance.

    ``through_iterates`` is :func:`derivative_of_iterates` along ``cotangent``.
    """
    inner = jax.lax.rsqrt(trace) * through_iterates
    through_trace = _total(inner * normalised) + 0.5 * _total(cotangent * whitening)
    return (inner - identity_like(normalised) * through_trace) / trace


def newton(covariance: jax.Array, num_iterations: int, epsilon: float, dot: Dot) -> tuple[jax.Array, Any]:
    """The whitening matrices of ``[..., g, g]`` by two iterations or more, and what :func:`newton_derivative` needs."""
    normalised, trace = normalise(covariance, epsilon)
    pairs = list(iterates(normalised, num_iterations, dot))
    whitening = whitening_of(pairs[-1], trace, dot)
    return whitening, (normalised, trace, pairs, whitening)


def newton_derivative(cotangent: jax.Array, saved: Any, dot: Dot) -> jax.Array:
    """The derivative by the covariance, symmetric."""
    normalised, trace, pairs, whitening = saved
    cotangent = 0.5 * (cotangent + _transposed(cotangent))
    through = derivative_of_iterates(pairs, cotangent, dot)
    return derivative_by_covariance(through, cotangent, normalised, whitening, trace)


def _transposed(matrix: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrix, -1, -2)


_matmul = functools.partial(jnp.matmul, precision=HIGHEST)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _inverse_sqrt(covariance: jax.Array, num_iterations: int, epsilon: float) -> jax.Array:
    return newton(covariance, num_iterations, epsilon, _matmul)[0]


@_inverse_sqrt.defjvp
def _inverse_sqrt_jvp(
    num_iterations: int, epsilon: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    whitening, saved = newton(*primals, num_iterations, epsilon, _matmul)

    def pullback(saved: Any, cotangent: jax.Array) -> jax.Array:
        return newton_derivative(cotangent, saved, _matmul)

    return whitening, linear_map(_newton_tangent, pullback, saved, *tangents)


def _newton_tangent(saved: Any, direction: jax.Array) -> jax.Array:
    """The change of the whitening matrix when the covariance moves along ``direction``; uses its symmetric part."""
    normalised, trace, pairs, whitening = saved
    direction = 0.5 * (direction + _transposed(direction)) / trace
    dtrace = _total(direction * identity_like(direction))
    through = derivative_of_iterates(pairs, direction - normalised * dtrace, _matmul)
    return jax.lax.rsqrt(trace) * through - 0.5 * whitening * dtrace


def inverse_sqrt_with_short_derivative(covariance: jax.Array, num_iterations: int, epsilon: float) -> jax.Array:
    """:func:`inverse_sqrt_newton`, with the short derivative, which takes the covariance to stay symmetric."""
    if has_short_derivative(num_iterations):
        return _inverse_sqrt(covariance, num_iterations, epsilon)
    return inverse_sqrt_newton(covariance, num_iterations, epsilon)
