"""Frozen batch norms: constants, whatever trains around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.nn import FrozenBatchNorm
from tests.helpers.norms import images, make, trained


def with_statistics(norm):
    rng = np.random.default_rng(0)
    for name in ("scale", "bias", "mean", "var"):
        getattr(norm, name)[...] = jnp.asarray(rng.uniform(0.5, 1.5, norm.num_features), jnp.float32)
    return norm


class Net(nnx.Module):
    def __init__(self, norm):
        self.norm = norm

    def __call__(self, x):
        return self.norm(x)


def test_training_updates_nothing_and_trains_nothing():
    layer = with_statistics(make("frozen_bn"))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer)))
    layer.train()
    x = jnp.asarray(images())
    y = layer(x)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(layer)))
    assert not jax.tree.leaves(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))
    layer.eval()
    np.testing.assert_array_equal(layer(x), y)


def test_it_is_a_batch_norm_in_evaluation():
    norm = trained(make("bn"))
    norm.eval()
    net = Net(norm)
    x = jnp.asarray(images())
    expected = net(x)
    gw_jax.swap_norms(net, "norm", functools.partial(FrozenBatchNorm, epsilon=norm.epsilon, rngs=nnx.Rngs(0)))
    assert isinstance(net.norm, FrozenBatchNorm)
    assert not jax.tree.leaves(nnx.to_pure_dict(nnx.state(net, nnx.Param)))
    np.testing.assert_allclose(net(x), expected, atol=1e-6)


def test_a_norm_in_its_place_is_trained():
    frozen = with_statistics(make("frozen_bn"))
    net = Net(frozen)
    gw_jax.swap_norms(net, "norm", functools.partial(gw_jax.GroupNorm, num_groups=4, rngs=nnx.Rngs(0)))
    for name in ("scale", "bias"):
        assert type(getattr(net.norm, name)) is nnx.Param
        np.testing.assert_array_equal(getattr(net.norm, name)[...], getattr(frozen, name)[...])


def test_a_dead_channel_needs_epsilon():
    x = jnp.zeros((1, 2))
    for epsilon, finite in ((0.0, False), (1e-5, True)):
        norm = FrozenBatchNorm(2, epsilon=epsilon, rngs=nnx.Rngs(0))
        norm.var[...] = jnp.array([1.0, 0.0])
        assert np.isfinite(norm(x)).all() == finite


def test_no_option_is_hidden():
    assert gw_jax.nn.norm_options("frozen_bn") == ("epsilon", "dtype", "param_dtype")
    with pytest.raises(
        ValueError, match=r"'frozen_bn' has no option \['momentum'\]; it accepts epsilon, dtype, param_dtype"
    ):
        gw_jax.make_norm("frozen_bn", 8, momentum=0.9, rngs=nnx.Rngs(0))
