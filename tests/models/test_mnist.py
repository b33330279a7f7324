import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax


def make(name, **options):
    return gw_jax.create_model(name, rngs=nnx.Rngs(0), **options)


def num_parameters(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mlp", {"width": 256, "norm": "bn", "norm_options": {"use_scale": False, "use_bias": False}}, 400_906),
        ("MLP", {"width": 256, "norm": "DBN"}, 402_954),
        ("mlp_norm_linear", {"norm": "bn"}, 150_210),
        ("MLP_NormAFLinear", {"norm": "IGWSVD", "norm_options": {"num_groups": 20}}, 150_210),
        ("lenet", {}, 61_706),
    ],
)
def test_parameter_counts_of_the_reference(name, options, expected):
    model = make(name, num_classes=10, **options)
    assert num_parameters(model) == expected
    assert model(jnp.ones((2, 28, 28, 1))).shape == (2, 10)


@pytest.mark.slow
def test_the_autoencoder_gives_images_back():
    model = make("AE")
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 28, 28, 1)), jnp.float32)
    assert model.encode(images).shape == (3, 3)
    y = model(images)
    assert y.shape == images.shape
    assert np.abs(y).max() <= 1
    graphdef, state = nnx.split(model)
    gradient = jax.jit(jax.grad(lambda state: ((nnx.merge(graphdef, state)(images) - images) ** 2).mean()))(state)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_initial_values_are_those_of_pytorch():
    model = make("lenet", num_classes=10)
    for layer, fan_in in ((model.conv2, 25 * 6), (model.linear1, 400), (model.head, 84)):
        bound = 1 / math.sqrt(fan_in)
        for parameter in (layer.kernel, layer.bias):
            assert np.abs(parameter[...]).max() <= bound
        assert np.abs(layer.kernel[...]).max() > 0.95 * bound


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"whiten": "S1"}, "The network 'mlp' does not have whiten; it accepts num_classes"),
        ("lenet", {"width": 10, "norm": "bn"}, "does not have norm, width"),
        ("resnet18", {"depth": 3}, "does not have depth"),
        ("mlp", {"depth": 0}, "depth=0; it must be 1 or more"),
        ("lenet", {"image_size": 8}, "LeNet needs images of at least 12 pixels"),
    ],
)
def test_misuse_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)
