"""Inverse square roots of batches of covariance matrices: by Newton-Schulz iteration and by eigendecomposition."""

import functools

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST

# P <- 1.5 P - 0.5 P^3 S, the Newton step for x^(-1/2).
NEWTON_LINEAR = 1.5
NEWTON_CUBIC = -0.5

# Without variance in some direction, rounding leaves an eigenvalue of about -6e-8 there, which grows by 2.25 an
# iteration and explodes once it is of size 1, some 20 iterations on. The eigenvalues of P Y lie in [0, 1], so a norm
# above their number tells it; the matrix then stays as it is. Up to here the eigenvalue is below 0.01.
FIRST_GUARDED_ITERATION = 15


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    # TF32 or bfloat16 products, an accelerator's default, make the iteration diverge from 7 iterations on.
    return jnp.matmul(a, b, precision=HIGHEST)


def _identity_like(matrix: jax.Array) -> jax.Array:
    size = matrix.shape[-1]
    return jnp.eye(size, dtype=matrix.dtype).reshape((1,) * (matrix.ndim - 2) + (size, size))


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
    """
    identity = _identity_like(covariance)
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
    # The first iterate in closed form: no product is spent on it, and its sharding is that of the input.
    p = NEWTON_LINEAR * identity + NEWTON_CUBIC * normalised
    y = _matmul(normalised, p)
    for iteration in range(1, num_iterations):
        product = _matmul(p, y)
        step = NEWTON_LINEAR * identity + NEWTON_CUBIC * product
        if iteration >= FIRST_GUARDED_ITERATION:
            norm = jnp.sum(product * product, axis=(-2, -1), keepdims=True)
            step = jnp.where(norm > 2 * identity.shape[-1], identity, step)
        p = _matmul(step, p)
        if iteration < num_iterations - 1:
            y = _matmul(y, step)
    return root * p


def _eigen_factors(covariance: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors ``U`` and ``(eigenvalues + epsilon)^(-1/2)`` of ``covariance``."""
    eigenvectors, eigenvalues = jax.lax.linalg.eigh(covariance, sort_eigenvalues=False)
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
