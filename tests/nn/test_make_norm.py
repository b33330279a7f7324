import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.nn import NORM_NAMES, FrozenBatchNorm, Identity, make_norm


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gw", gw_jax.GroupWhitening),
        ("gw_zca", gw_jax.GroupWhitening),
        ("bn", gw_jax.BatchNorm),
        ("frozen_bn", FrozenBatchNorm),
        ("gn", gw_jax.GroupNorm),
        ("ln", gw_jax.LayerNorm),
        ("in", gw_jax.InstanceNorm),
        ("iternorm", gw_jax.BatchWhitening),
        ("iternorm_sigma", gw_jax.BatchWhitening),
        ("dbn", gw_jax.BatchWhitening),
        ("dbn_sigma", gw_jax.BatchWhitening),
        ("none", Identity),
        ("No", Identity),
        ("LN", gw_jax.LayerNorm),
    ],
)
def test_names(name, kind):
    assert type(make_norm(name, 64, rngs=nnx.Rngs(0))) is kind


def test_the_name_decides_the_method():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 16)), jnp.float32)
    for name, method in (("gw", "newton"), ("gw_zca", "zca")):
        layer = make_norm(name, 16, num_groups=4, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(layer(x), gw_jax.group_whiten(x, 4, method=method))


def test_the_identity_accepts_common_options():
    x = jnp.arange(4)
    assert make_norm("none", 4, rngs=nnx.Rngs(0))(x) is x


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gww", {}, "norm='gww' is not known; choose one of gw, .* Did you mean 'gw'"),
        (
            "gw",
            {"groups": 4},
            r"'gw' has no option \['groups'\]; it accepts num_groups, channels_per_group, num_iterations",
        ),
        ("bn", {"num_groups": 4}, r"'bn' has no option \['num_groups'\]"),
        ("none", {"num_groups": 4}, r"'none' has no option \['num_groups'\]; it accepts none"),
        ("gw", {"num_groups": 48}, "64 channels cannot be cut into num_groups=48"),
        ("gn", {"num_groups": 48}, "64 channels cannot be cut into num_groups=48"),
        ("gn", {"num_groups": 128}, "64 channels cannot be cut into num_groups=128"),
        ("gw", {"channels_per_group": 128}, "channels_per_group=128 of 64 channels; 1 to 64 are allowed"),
        ("gw", {"channels_per_group": 10}, "64 channels cannot be cut into num_groups=6"),
        ("iternorm", {"channels_per_group": 0}, "channels_per_group=0"),
        ("iternorm", {"running": "covariance"}, r"'iternorm' has no option \['running'\]"),
        ("dbn", {"epsilon": 0.0}, "epsilon=0.0 with method='zca'"),
        ("dbn", {"group_size": 0}, "group_size=0"),
        ("ln", {"epsilon": -1.0}, "epsilon=-1"),
        ("gw", {"num_groups": 8.0}, "num_groups=8.0 is a float; it must be an integer"),
        ("gn", {"num_groups": True}, "num_groups=True is a bool; it must be an integer"),
        ("gw", {"num_iterations": 5.0}, "num_iterations=5.0 is a float"),
        ("iternorm", {"channels_per_group": 8.0}, "channels_per_group=8.0 is a float"),
        ("bn", {"group_size": 2.0}, "group_size=2.0 is a float"),
        (
            "IGWItN",
            {"num_iterations": 5},
            "is the reference's name, .* For the options of this project call it 'gw'",
        ),
        ("ItN", {"T": 5}, "ItN needs num_channels"),
        ("BN", {"track_running_stats": False}, "BN always keeps running statistics"),
        ("IGWItN", {"T": 2.5}, "norm_cfg T=2.5 is a float; it must be of type int"),
        ("DBN", {"affine": 1}, "norm_cfg affine=1 is a int; it must be of type bool"),
        ("DBN", {"num_channels": True}, "num_channels=True is a bool"),
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


@pytest.mark.parametrize(
    ("reference", "options", "ours", "expected"),
    [
        (
            "IGWItN",
            {"T": 3, "num_groups": 8, "eps": 0.1, "dim": 4},
            "gw",
            {"num_iterations": 3, "num_groups": 8},
        ),
        ("IGWItN", {"num_channels": 4, "num_groups": 2}, "gw", {"channels_per_group": 4}),
        ("IGWItN", {"num_channels": 0, "num_groups": 8}, "gw", {"num_groups": 8}),
        ("IGWSVD", {"num_groups": 8, "eps": 0.01, "T": 9}, "gw_zca", {"num_groups": 8, "epsilon": 0.01}),
        ("BN", {"momentum": 0.25, "eps": 0.01, "T": 5, "num_groups": 9}, "bn", {"momentum": 0.75, "epsilon": 0.01}),
        ("GN", {"num_groups": 8, "affine": False}, "gn", {"num_groups": 8, "use_scale": False, "use_bias": False}),
        ("IN", {"affine": True}, "in", {"use_scale": True, "use_bias": True}),
        ("ItN", {"num_channels": 8, "momentum": 0.3}, "iternorm", {"channels_per_group": 8, "momentum": 0.7}),
        ("ItNSigma", {"num_channels": 8, "T": 2}, "iternorm_sigma", {"channels_per_group": 8, "num_iterations": 2}),
        ("DBN", {"eps": 0.01}, "dbn", {"channels_per_group": 16, "epsilon": 0.01}),
        ("DBNSigma", {"num_channels": 5}, "dbn_sigma", {"channels_per_group": 5}),
    ],
)
def test_the_names_and_options_of_the_reference(reference, options, ours, expected):
    layer, twin = make_norm(reference, 32, rngs=nnx.Rngs(0), **options), make_norm(ours, 32, rngs=nnx.Rngs(0), **expected)
    assert nnx.graphdef(layer) == nnx.graphdef(twin)


@pytest.mark.parametrize("epsilon", [float("nan"), float("inf"), -1e-5])
@pytest.mark.parametrize("name", [name for name in NORM_NAMES if name != "none"])
def test_an_epsilon_must_be_finite(name, epsilon):
    with pytest.raises(ValueError, match=f"epsilon={epsilon}.* must be finite and >=? 0"):
        make_norm(name, 64, epsilon=epsilon, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("num_features", [0, 64.0])
@pytest.mark.parametrize("name", [name for name in NORM_NAMES if name != "none"])
def test_features_are_a_positive_integer(name, num_features):
    with pytest.raises(ValueError, match=f"num_features={num_features}"):
        make_norm(name, num_features, rngs=nnx.Rngs(0))
