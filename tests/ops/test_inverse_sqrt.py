import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gw_jax.ops import inverse_sqrt_newton, inverse_sqrt_zca


def covariance_with(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    return vectors * np.asarray(eigenvalues) @ vectors.T


def published_newton(covariance, num_iterations):
    """The reference's own, uncoupled form."""
    trace = np.trace(covariance)
    p = np.eye(len(covariance))
    for _ in range(num_iterations):
        p = 1.5 * p - 0.5 * p @ p @ p @ covariance / trace
    return p / np.sqrt(trace)


@pytest.mark.parametrize("num_iterations", [0, 1, 2, 5, 7])
def test_coupled_form_equals_the_published_one(float64, num_iterations):
    covariance = covariance_with([3.0, 1.0, 0.5, 0.2, 0.01])
    result = inverse_sqrt_newton(jnp.asarray(covariance), num_iterations)
    np.testing.assert_allclose(result, published_newton(covariance, num_iterations), rtol=1e-9, atol=1e-12)


def test_converges_to_the_inverse_square_root(float64):
    covariance = covariance_with([3.0, 1.0, 0.5, 0.2, 0.01])
    result = np.asarray(inverse_sqrt_newton(jnp.asarray(covariance), 30))
    np.testing.assert_allclose(result @ covariance @ result, np.eye(5), atol=1e-9)


def test_epsilon_is_added_to_the_diagonal(float64):
    covariance = covariance_with([3.0, 1.0, 0.0])
    for function in (lambda c, e: inverse_sqrt_newton(c, 5, e), inverse_sqrt_zca):
        shifted = function(jnp.asarray(covariance + 0.1 * np.eye(3)), 1e-300)
        np.testing.assert_allclose(function(jnp.asarray(covariance), 0.1), shifted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_iterations", [10, 20, 30, 60])
def test_singular_matrices_stay_finite_for_any_number_of_iterations(num_iterations):
    x = np.random.default_rng(0).standard_normal((4, 64, 8)).astype(np.float32)
    covariance = jnp.asarray(x @ x.transpose(0, 2, 1) / 8)

    def energy(c):
        return (inverse_sqrt_newton(c, num_iterations) @ jnp.asarray(x)).sum()

    value, gradient = jax.value_and_grad(energy)(covariance)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_zca_is_exact(float64):
    covariance = covariance_with([3.0, 1.0, 0.5, 0.2, 0.01])
    result = np.asarray(inverse_sqrt_zca(jnp.asarray(covariance), 1e-12))
    np.testing.assert_allclose(result @ covariance @ result, np.eye(5), atol=1e-8)


@pytest.mark.parametrize("eigenvalues", [[3.0, 1.0, 0.5, 0.2], [1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.1, 0.1]])
def test_zca_derivatives_match_differences_also_where_eigenvalues_coincide(float64, eigenvalues):
    covariance = jnp.asarray(covariance_with(eigenvalues))

    def symmetric(c):  # eigh reads a symmetric matrix; the directions of the test are not.
        return inverse_sqrt_zca((c + c.T) / 2, 0.1)

    check_grads(symmetric, (covariance,), order=1, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6, eps=1e-5)


def test_zca_derivative_does_not_overflow_for_a_small_epsilon():
    gradient = jax.grad(lambda c: inverse_sqrt_zca(c, 1e-20)[0, 1])(jnp.eye(3) * jnp.float32(1e-3))
    assert np.isfinite(gradient).all()
