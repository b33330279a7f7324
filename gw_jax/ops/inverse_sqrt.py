"""Inverse square roots of batches of covariance matrices: by Newton-Schulz iteration and by eigendecomposition.

All iterates of the Newton-Schulz iteration are polynomials of one symmetric matrix: they are symmetric and commute, and the
derivative of such a polynomial is its own transpose. So the gradient of ``<E, P(S)>`` is the change of ``P`` when ``S``
moves along ``E``, which the iteration can carry along: 16 products for 5 iterations, where reverse mode takes 24, and no
iterate has to be kept. It equals what differentiation gives to 1e-15 in float64, and fits into a kernel.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gw_jax.ops.lapack import eigh

HIGHEST = jax.lax.Precision.HIGHEST
Dot = Callable[[jax.Array, jax.Array], jax.Array]

# P <- 1.5 P - 0.5 P^3 S, the Newton step for x^(-1/2).
NEWTON_LINEAR = 1.5
NEWTON_CUBIC = -0.5

# Without variance in some direction, rounding leaves an eigenvalue of about -6e-8 there, which grows by 2.25 per
# iteration and explodes once it is of size 1, some 20 iterations later. The eigenvalues of P Y lie in [0, 1], so a norm
# above their number detects it; the iterate then stays unchanged. Before this iteration the eigenvalue is below 0.01.
FIRST_GUARDED_ITERATION = 15


_matmul = functools.partial(jnp.matmul, precision=HIGHEST)


def identity_like(matrix: jax.Array) -> jax.Array:
    """``[..., g, g]``, made of iotas: kernels accept no constants."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, matrix.shape, matrix.ndim - axis) for axis in (2, 1))
    return (rows == columns).astype(matrix.dtype)


def _trace(matrix: jax.Array) -> jax.Array:
    """The trace with its two axes kept, and 1 where it is zero: the guard for inputs without variance."""
    trace = jnp.trace(matrix, axis1=-2, axis2=-1)[..., None, None]
    return jnp.where(trace == 0, jnp.ones_like(trace), trace)


def inverse_sqrt_newton(covariance: jax.Array, num_iterations: int = 5, epsilon: float = 0.0) -> jax.Array:
    """Approximates ``(covariance + epsilon I)^(-1/2)`` by Newton-Schulz iterations.

    With ``C = covariance + epsilon I`` and ``S = C / tr(C)``, the iteration ::

        P_0 = I,   P_{k+1} = 1.5 P_k - 0.5 P_k^3 S,   result = P_T / sqrt(tr(C))

    runs in its coupled form, ``M = 1.5 I - 0.5 P Y``, ``P <- M P``, ``Y <- Y M`` with ``Y = S P``. Both forms are the
    same in exact arithmetic. The published one multiplies rounding errors in every iteration and diverges in
    float32 past 8 iterations; the coupled one damps them.

    The iteration is cut off, not converged: after 5 iterations an eigenvalue far below the mean has grown by
    ``1.5^5`` only, which is part of the published method. A direction without any variance grows by 1.5 an
    iteration, without end; give ``epsilon`` where that matters and many iterations are wanted.

    Args:
        covariance: symmetric positive semi-definite matrices ``[..., g, g]``, float32 or float64, with a trace
            between 1e-37 and 1e38 in float32, or zero.
        num_iterations: ``T >= 0``; 0 gives ``I / sqrt(tr(C))``.
        epsilon: added to the diagonal. Zero is the published method.

    Returns:
        Matrices of the shape and type of ``covariance``. A matrix of zeros gives ``1.5^T I``, with finite derivatives.

    Source: Iterative Normalization (CVPR 2019), section 3.2; Group Whitening (CVPR 2021), section 3.1; the coupled
    form: Higham, Functions of Matrices (2008), section 6.3.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops import inverse_sqrt_newton
        >>> inverse_sqrt_newton(jnp.diag(jnp.array([1.0, 4.0])), num_iterations=10).round(3).tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """
    size = covariance.shape[-1]
    identity = jnp.eye(size, dtype=covariance.dtype).reshape((1,) * (covariance.ndim - 2) + (size, size))
    if epsilon:
        covariance = covariance + epsilon * identity
    # The result does not depend on this first scaling, so it needs no derivative. It keeps 1/tr^2, which the
    # derivative of the second scaling contains, inside float32 for inputs of size 1e-10 or 1e10.
    unit = jax.lax.stop_gradient(jax.lax.rsqrt(_trace(covariance)))
    scaled = (covariance * unit) * unit
    trace = _trace(scaled)
    root = unit * jax.lax.rsqrt(trace)
    if num_iterations == 0:
        return root * identity
    normalised = scaled / trace
    if num_iterations == 1:
        return root * (NEWTON_LINEAR * identity + NEWTON_CUBIC * normalised)
    *_, (p, step) = iterates(normalised, num_iterations, _matmul)
    return root * _matmul(step, p)


def iterates(normalised: jax.Array, num_iterations: int, dot: Dot) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields ``(P_k, M_k)`` of ``P_{k+1} = M_k P_k`` for ``k = 0 .. T-1``, of two or more, in the coupled form.

    ``P_0`` is the identity, and no product is spent on it; ``M_0`` has the sharding of the input.
    """
    identity = identity_like(normalised)
    step = NEWTON_LINEAR * identity + NEWTON_CUBIC * normalised
    yield identity, step
    p, y = step, dot(normalised, step)
    for iteration in range(1, num_iterations):
        product = dot(p, y)
        step = NEWTON_LINEAR * identity + NEWTON_CUBIC * product
        if iteration >= FIRST_GUARDED_ITERATION:
            norm = jnp.sum(product * product, axis=(-2, -1), keepdims=True)
            step = jnp.where(norm > 2 * identity.shape[-1], identity, step)
        yield p, step
        if iteration < num_iterations - 1:
            p, y = dot(step, p), dot(y, step)


class NewtonResiduals(NamedTuple):
    """The values of :func:`newton` that its derivative needs."""

    normalised: jax.Array
    trace: jax.Array
    pairs: list[tuple[jax.Array, jax.Array]]
    whitening: jax.Array


def supports_vjp(num_iterations: int) -> bool:
    """Whether the short derivative exists for a number of iterations: at least 2, and none that is guarded."""
    return 2 <= num_iterations < FIRST_GUARDED_ITERATION


def newton(covariance: jax.Array, num_iterations: int, epsilon: float, dot: Dot) -> tuple[jax.Array, NewtonResiduals]:
    """The whitening matrices of ``[..., g, g]``, and what :func:`newton_vjp` needs.

    Args:
        covariance: symmetric matrices ``[..., g, g]``, float32 or float64.
        num_iterations: one for which :func:`supports_vjp` is true.
        epsilon: added to the diagonal.
        dot: multiplies two arrays of matrices; kernels have their own.
    """
    normalised, trace = normalise(covariance, epsilon)
    pairs = list(iterates(normalised, num_iterations, dot))
    whitening = whitening_of(pairs[-1], trace, dot)
    return whitening, NewtonResiduals(normalised, trace, pairs, whitening)


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


def whitening_of(last: tuple[jax.Array, jax.Array], trace: jax.Array, dot: Dot) -> jax.Array:
    """``C^(-1/2)`` from the last of :func:`iterates`, of two or more."""
    p, step = last
    return jax.lax.rsqrt(trace) * dot(step, p)


def derivative_of_iterates(pairs: Iterable[tuple[jax.Array, jax.Array]], direction: jax.Array, dot: Dot) -> jax.Array:
    """The change of ``P_T`` as the normalised matrix moves along ``direction``, symmetric; consumes :func:`iterates`.

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


def newton_vjp(cotangent: jax.Array, residuals: NewtonResiduals, dot: Dot) -> jax.Array:
    """The gradient by the covariance, symmetric, for a ``cotangent`` of the whitening matrix."""
    normalised, trace, pairs, whitening = residuals
    cotangent = 0.5 * (cotangent + _transposed(cotangent))
    through = derivative_of_iterates(pairs, cotangent, dot)
    return derivative_by_covariance(through, cotangent, normalised, whitening, trace)


def _transposed(matrix: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrix, -1, -2)


def _eigen_factors(covariance: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors ``U`` and ``(eigenvalues + epsilon)^(-1/2)`` of ``covariance``."""
    eigenvectors, eigenvalues = eigh(covariance)
    # Rounding can make a zero eigenvalue slightly negative.
    return eigenvectors, jax.lax.rsqrt(jnp.maximum(eigenvalues, 0) + epsilon)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def inverse_sqrt_zca(covariance: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """``(covariance + epsilon I)^(-1/2)`` by eigendecomposition: ``U diag((s + epsilon)^(-1/2)) U^T``.

    The derivative does not go through the eigenvectors, whose own derivative divides by differences of
    eigenvalues. It is the Daleckii-Krein formula ``dW = U (F * (U^T dC U)) U^T`` with the divided differences of
    ``s^(-1/2)`` in closed form, ``F_ij = -r_i^2 r_j^2 / (r_i + r_j)``, ``r = (s + epsilon)^(-1/2)``. It is exact, and
    finite where eigenvalues coincide.

    Args:
        covariance: symmetric positive semi-definite matrices ``[..., g, g]``, float32 or float64.
        epsilon: added to the eigenvalues, > 0.

    Returns:
        Matrices of the shape and type of ``covariance``.

    Source: Decorrelated Batch Normalization (CVPR 2018), section 3; the reference's ``GroupSVD``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops import inverse_sqrt_zca
        >>> inverse_sqrt_zca(jnp.diag(jnp.array([1.0, 4.0])), 1e-6).round(3).tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """
    vectors, roots = _eigen_factors(covariance, epsilon)
    return _matmul(vectors * roots[..., None, :], jnp.matrix_transpose(vectors))


@inverse_sqrt_zca.defjvp
def _inverse_sqrt_zca_jvp(
    epsilon: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (covariance,), (tangent,) = primals, tangents
    vectors, roots = _eigen_factors(covariance, epsilon)
    transposed = jnp.matrix_transpose(vectors)
    whitening = _matmul(vectors * roots[..., None, :], transposed)
    left, right = roots[..., :, None], roots[..., None, :]
    products = left * right
    # Two factors r_i r_j, multiplied apart: r^4 leaves the range of float32 for a small epsilon.
    differences = -products * (products / (left + right))
    rotated = _matmul(_matmul(transposed, tangent), vectors)
    return whitening, _matmul(_matmul(vectors, differences * rotated), transposed)
