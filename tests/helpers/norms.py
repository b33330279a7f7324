"""Norms by name, their inputs, and layers as functions."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax import make_norm
from gw_jax.nn import NORM_NAMES, norm_options

NORMS = [name for name in NORM_NAMES if name != "none"]


WITH_BATCH_STATISTICS = [name for name in NORMS if "axis_name" in norm_options(name)]


def make(name, features=16, **options):
    usual = {"use_scale": True, "use_bias": True} if "use_scale" in norm_options(name) else {}
    if "num_groups" in norm_options(name):
        usual["num_groups"] = 4
    elif "channels_per_group" in norm_options(name):
        usual["channels_per_group"] = 5  # Does not divide 16: the last group of the batch-whitening layers has one channel.
    options = {**usual, **options}
    layer = make_norm(name, features, rngs=nnx.Rngs(0), **options)
    if name != "none" and layer.scale is not None:
        layer.scale[...] = jnp.linspace(0.5, 1.5, features, dtype=layer.scale.dtype)
        layer.bias[...] = jnp.linspace(-1, 1, features, dtype=layer.bias.dtype)
    return layer


def images(shape=(8, 5, 4, 16), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def functional(layer):
    graphdef, state = nnx.split(layer)
    state = nnx.to_pure_dict(state)

    def apply(x, mask=None):
        return nnx.merge(graphdef, state)(x, mask)

    return apply


def with_statistics(layer):
    """``(params, stats, x, mask) -> (y, new stats)`` and the layer's params and stats."""
    graphdef, *states = nnx.split(layer, nnx.Param, nnx.BatchStat)

    def apply(params, stats, x, mask=None):
        model = nnx.merge(graphdef, params, stats)
        y = model(x, mask)
        return y, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return apply, *map(nnx.to_pure_dict, states)


def trained(layer, steps=2):
    """``layer`` with running statistics that are not the initial ones."""
    layer.train()
    for step in range(steps):
        layer(jnp.asarray(images(seed=10 + step)))
    return layer
