import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.nn import Identity, make_norm


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gw", gw_jax.GroupWhitening),
        ("gw_zca", gw_jax.GroupWhitening),
        ("bn", gw_jax.BatchNorm),
        ("gn", gw_jax.GroupNorm),
        ("none", Identity),
    ],
)
def test_names(name, kind):
    assert type(make_norm(name, 64, rngs=nnx.Rngs(0))) is kind


def test_the_name_decides_the_method():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 16)), jnp.float32)
    for name, method in (("gw", "newton"), ("gw_zca", "zca")):
        layer = make_norm(name, 16, num_groups=4, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(layer(x), gw_jax.group_whiten(x, 4, method=method))


def test_the_identity_takes_anything():
    x = jnp.arange(4)
    assert make_norm("none", 4, rngs=nnx.Rngs(0))(x) is x


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gww", {}, "No normalisation is called 'gww'; choose one of gw, .* Did you mean 'gw'"),
        ("gw", {"groups": 4}, r"'gw' has no option \['groups'\]; it takes num_groups, num_iterations"),
        ("bn", {"num_groups": 4}, r"'bn' has no option \['num_groups'\]"),
        ("none", {"num_groups": 4}, r"'none' has no option \['num_groups'\]; it takes none"),
        ("gw", {"num_groups": 48}, "64 channels cannot be cut into num_groups=48"),
        ("gn", {"num_groups": 48}, "64 channels cannot be cut into num_groups=48"),
        ("gn", {"num_groups": 128}, "64 channels cannot be cut into num_groups=128"),
        ("bn", {"momentum": 1.5}, "momentum=1.5"),
        ("bn", {"group_size": 0}, "group_size=0"),
        ("bn", {"epsilon": -1.0}, "epsilon=-1"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_norm(name, 64, rngs=nnx.Rngs(0), **options)


def test_groups_are_clamped_with_a_warning():
    with pytest.warns(UserWarning, match="num_groups=64 exceeds the 16 channels"):
        layer = make_norm("gw", 16, num_groups=64, rngs=nnx.Rngs(0))
    assert layer.num_groups == 16
