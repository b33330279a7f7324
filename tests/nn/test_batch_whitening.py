"""Batch whitening beyond the contract of all norms: it whitens, and is accurate in float32."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gw_jax import make_norm
from gw_jax.nn.reference_norms import BATCH_WHITENING, REFERENCE_NORMS
from gw_jax.versions import enable_x64

NAMES = [REFERENCE_NORMS[name] for name in BATCH_WHITENING]


def correlated(shape, seed=0, condition=100.0):
    """Data whose channels are mixed, with eigenvalues of the covariance from 1 to ``condition``."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    mixing, _ = np.linalg.qr(rng.standard_normal((channels, channels)))
    return rng.standard_normal(shape) @ (mixing * np.sqrt(np.geomspace(1, condition, channels))) + 3


def make(name, features, **options):
    return make_norm(name, features, use_scale=False, use_bias=False, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize("name", ["dbn", "iternorm"])
def test_every_group_comes_out_white(float64, name):
    options = {"num_iterations": 30} if name == "iternorm" else {}
    layer = make(name, 20, channels_per_group=8, epsilon=1e-9, param_dtype=jnp.float64, **options)
    y = np.asarray(layer(jnp.asarray(correlated((64, 5, 5, 20))))).reshape(-1, 20)
    for group in (slice(0, 8), slice(8, 16), slice(16, 20)):
        np.testing.assert_allclose(np.cov(y[:, group].T, bias=True), np.eye(len(y[0, group])), atol=1e-6)
    across = np.abs(np.cov(y.T, bias=True)[:8, 8:])
    assert across.max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate(name, train):
    x = correlated((64, 6, 6, 40), condition=1e3)
    results = []
    for dtype in (jnp.float64, jnp.float32):
        with enable_x64(dtype == jnp.float64):
            layer = make(name, 40, channels_per_group=16, param_dtype=dtype)
            layer(jnp.asarray(x, dtype))
            layer.train() if train else layer.eval()
            results.append(np.asarray(layer(jnp.asarray(x, dtype))))
    assert np.abs(results[0] - results[1]).max() <= 2e-5 * np.abs(results[0]).max()


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_converges_to_training(name):
    """With the running statistics of one batch alone, evaluation on it is what training gives."""
    layer = make(name, 12, channels_per_group=5, momentum=0.0)
    x = jnp.asarray(correlated((32, 12)), jnp.float32)
    trained = layer(x)
    layer.eval()
    np.testing.assert_allclose(layer(x), trained, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_padding_of_the_last_group_never_shows(name):
    """A ragged layer is two layers side by side."""
    x = jnp.asarray(correlated((16, 3, 3, 13)), jnp.float32)
    whole = make(name, 13, channels_per_group=8)
    parts = [make(name, 8, channels_per_group=8), make(name, 5, channels_per_group=5)]
    for _ in range(2):
        y = whole(x)
        expected = jnp.concatenate([part(half) for part, half in zip(parts, (x[..., :8], x[..., 8:]), strict=True)], -1)
        np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(whole.matrix[...][1, :5, :5], parts[1].matrix[...][0], atol=1e-5)
    np.testing.assert_array_equal(whole.matrix[...][1, 5:], np.eye(8)[5:])
    np.testing.assert_array_equal(whole.matrix[...][1, :, 5:], np.eye(8)[:, 5:])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_equal_eigenvalues_have_finite_gradients(name):
    apply = nnx.grad(lambda layer, x: (layer(x) ** 3).sum(), argnums=1)
    rng = np.random.default_rng(0)
    twice = np.repeat(rng.standard_normal((10, 6)), 2, axis=1)
    for x in (np.ones((10, 12)), twice, np.zeros((10, 12)), rng.standard_normal((3, 12))):
        layer = make(name, 12, channels_per_group=12)
        for mode in (layer.train, layer.eval):
            mode()
            assert np.isfinite(apply(layer, jnp.asarray(x, jnp.float32))).all()


def test_zero_matrices_give_the_bias_alone():
    """As after the reference's reset_projection."""
    layer = make_norm("iternorm", 4, channels_per_group=4, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    layer.matrix[...] = jnp.zeros((1, 4, 4))
    layer.eval()
    np.testing.assert_array_equal(layer(jnp.ones((2, 4))), [[0, 1, 2, 3]] * 2)


def test_defaults_are_the_reference_s():
    dbn, iternorm = make("dbn", 40), make("iternorm", 40)
    assert (dbn.channels_per_group, dbn.epsilon, dbn.num_groups) == (16, 1e-3, 3)
    assert (iternorm.epsilon, iternorm.num_iterations, iternorm.momentum) == (1e-5, 5, 0.9)
