"""What every norm keeps, whatever it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gw_jax import make_norm
from gw_jax.nn import NORM_NAMES, norm_options

NORMS = [name for name in NORM_NAMES if name != "none"]


def make(name, features=16, **options):
    if "num_groups" in norm_options(name):
        options = {"num_groups": 4, **options}
    return make_norm(name, features, rngs=nnx.Rngs(0), **options)


def images(shape=(8, 5, 4, 16), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def functional(layer):
    graphdef, state = nnx.split(layer)
    state = nnx.to_pure_dict(state)

    def apply(x, mask=None):
        return nnx.merge(graphdef, state)(x, mask)

    return apply


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(8, 16), (8, 7, 16), (8, 5, 4, 16), (4, 2, 3, 4, 16)])
@pytest.mark.parametrize("name", NORM_NAMES)
def test_keeps_shape_and_type(name, shape, train):
    layer = make(name)
    layer.train() if train else layer.eval()
    for dtype in (jnp.float32, jnp.bfloat16):
        y = layer(jnp.asarray(images(shape), dtype))
        assert y.shape == shape
        assert y.dtype == dtype
        assert np.isfinite(np.asarray(y, np.float32)).all()


@pytest.mark.parametrize("name", NORMS)
def test_dtype_is_the_type_of_the_output_only(name):
    layer = make(name, dtype=jnp.bfloat16)
    x = images()
    y = layer(jnp.asarray(x))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), make(name)(jnp.asarray(x)), atol=0.02)
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(layer))):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("name", NORMS)
def test_jit_changes_nothing(name):
    apply = functional(make(name))
    x = jnp.asarray(images())
    np.testing.assert_allclose(jax.jit(apply)(x), apply(x), atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", NORMS)
def test_keeps_the_sharding_of_the_batch(name, axis_type):
    apply = functional(make(name))
    x = images()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        y = jax.jit(apply)(jax.device_put(x, sharding))
    assert y.sharding.is_equivalent_to(sharding, y.ndim)
    np.testing.assert_allclose(y, apply(jnp.asarray(x)), atol=1e-5)


@pytest.mark.parametrize("value", ["constant", "one hot pixel", 1e10, 1e-10, "all masked", "empty batch"])
@pytest.mark.parametrize("name", NORMS)
def test_hard_inputs_have_finite_values_and_gradients(name, value):
    x, mask = images(), None
    if value in ("constant", "one hot pixel"):
        x = np.full_like(x, 0.1)
    if value == "one hot pixel":
        x[:, 2, 3, 5] = 1
    if isinstance(value, float):
        x = x * np.float32(value)
    if value == "all masked":
        mask = jnp.zeros(x.shape[:-1], bool)
    if value == "empty batch":
        x = x[:0]
    apply = functional(make(name))
    weight = jnp.asarray(images(x.shape, seed=1))
    y = apply(jnp.asarray(x), mask)
    gradient = jax.grad(lambda x: (apply(x, mask) * weight).sum())(jnp.asarray(x))
    assert y.shape == gradient.shape == x.shape
    assert np.isfinite(y).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_masked_padding_changes_nothing(name, train):
    small = images()
    padded = np.full((8, 9, 8, 16), np.nan, np.float32)
    mask = np.zeros(padded.shape[:-1], bool)
    padded[:, 2:7, 3:7], mask[:, 2:7, 3:7] = small, True
    layer = make(name)
    layer.bias[...] = jnp.ones(16)
    layer.train() if train else layer.eval()
    apply = functional(layer)
    y = np.asarray(apply(jnp.asarray(padded), jnp.asarray(mask)))
    np.testing.assert_allclose(y[:, 2:7, 3:7], apply(jnp.asarray(small)), atol=2e-6)
    assert (y[~mask] == 0).all()


@pytest.mark.parametrize("name", NORMS)
def test_bad_inputs_are_named(name):
    layer = make(name)
    with pytest.raises(ValueError, match=r"made for 16 channels and got shape \(2, 4, 4, 8\)"):
        layer(jnp.zeros((2, 4, 4, 8)))
    with pytest.raises(TypeError, match="uint8"):
        layer(jnp.zeros((2, 4, 4, 16), jnp.uint8))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\)"):
        layer(jnp.zeros((2, 4, 4, 16)), jnp.ones((2, 4), bool))


@pytest.mark.parametrize("name", NORMS)
def test_parameters_can_be_left_out(name):
    layer = make(name, use_scale=False, use_bias=False)
    assert not jax.tree.leaves(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))
    np.testing.assert_allclose(layer(jnp.asarray(images())), make(name)(jnp.asarray(images())), atol=1e-6)
