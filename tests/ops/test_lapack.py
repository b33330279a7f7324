"""Eigendecompositions of many matrices on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.ops import lapack


@pytest.fixture(autouse=True)
def batches_can_hang(monkeypatch):
    monkeypatch.setattr(lapack, "batched_lapack_can_hang", lambda: True)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)


def matrices(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def symmetric(*batch: int) -> jax.Array:
    x = matrices(*batch, 8, 8)
    return x + jnp.matrix_transpose(x)


def batches_given_to_lapack(function, *arguments) -> set[int]:
    """Sizes of the batches in the calls of LAPACK, 1 for a single matrix."""
    program = jax.jit(function).lower(*arguments).as_text()
    calls = re.findall(r"custom_call @lapack_.*?: \(tensor<([0-9x]+)xf32>", program)
    assert calls, program
    return {int(np.prod([int(size) for size in call.split("x")[:-2]], dtype=int)) for call in calls}


@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (0,)])
def test_eigh_is_a_decomposition(batch):
    x = symmetric(*batch)
    vectors, values = jax.jit(lapack.eigh)(x)
    assert vectors.shape == x.shape
    assert values.shape == x.shape[:-1]
    rebuilt = np.asarray(vectors * values[..., None, :]) @ np.asarray(jnp.matrix_transpose(vectors))
    np.testing.assert_allclose(rebuilt, x, atol=1e-5)


@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_one_matrix_at_a_time(batch):
    # Batches wait for each other for ever with jaxlib 0.10: ResNet-18 with gw_zca everywhere did not finish a step.
    assert batches_given_to_lapack(lapack.eigh, symmetric(*batch)) == {1}


def test_batches_where_they_are_safe(monkeypatch):
    monkeypatch.setattr(lapack, "batched_lapack_can_hang", lambda: False)
    # A new function: jit keeps the program of the other.
    assert batches_given_to_lapack(lambda x: lapack.eigh(x), symmetric(6)) == {6}


def test_batches_on_several_devices(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    assert batches_given_to_lapack(lambda x: lapack.eigh(x), symmetric(6)) == {6}


def test_second_derivatives():
    def loss(x, eigh):
        vectors, values = eigh(x)
        return jnp.sum(vectors[..., 0, :] ** 2 * values**3)

    x = jnp.diag(jnp.arange(1.0, 9))[None] + symmetric(2) / 10
    one_by_one, batched = (jax.jit(jax.hessian(loss), static_argnums=1)(x, eigh) for eigh in (lapack.eigh, lapack._eigh))
    assert np.abs(batched).max() > 1
    np.testing.assert_allclose(one_by_one, batched, rtol=1e-4, atol=1e-3)


def test_whitening_by_eigendecomposition_decomposes_one_matrix_at_a_time():
    from gw_jax import group_whiten

    def loss(x):
        return jnp.sum(group_whiten(x, 8, method="zca") ** 3)

    assert batches_given_to_lapack(jax.grad(loss), matrices(4, 6, 6, 32)) == {1}
