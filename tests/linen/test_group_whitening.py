import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("method", ["newton", "zca"])
@pytest.mark.parametrize("affine", [False, True])
def test_bit_equal_to_the_nnx_layer(method, affine, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 5, 4, 16)), dtype)
    options = {"num_groups": 4, "method": method, "use_scale": affine, "use_bias": affine}
    linen_layer = gw_jax.linen.GroupWhitening(**options)
    layer = gw_jax.GroupWhitening(16, rngs=nnx.Rngs(0), **options)
    variables = linen_layer.init(jax.random.key(0), x)
    assert set(variables.get("params", {})) == ({"scale", "bias"} if affine else set())
    if affine:
        params = {name: jnp.asarray(rng.standard_normal(16), jnp.float32) for name in ("scale", "bias")}
        variables = {"params": params}
        layer.scale[...], layer.bias[...] = params["scale"], params["bias"]

    def linen_loss(variables, x):
        y = linen_layer.apply(variables, x)
        return (y.astype(jnp.float32) ** 2).sum(), y

    graphdef, state = nnx.split(layer)

    def nnx_loss(state, x):
        y = nnx.merge(graphdef, state)(x)
        return (y.astype(jnp.float32) ** 2).sum(), y

    (_, linen_y), linen_gradients = jax.value_and_grad(linen_loss, argnums=(0, 1), has_aux=True)(variables, x)
    (_, y), (params_gradient, x_gradient) = jax.value_and_grad(nnx_loss, argnums=(0, 1), has_aux=True)(state, x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(linen_y, np.float32))
    np.testing.assert_array_equal(np.asarray(x_gradient, np.float32), np.asarray(linen_gradients[1], np.float32))
    if affine:
        pure = nnx.to_pure_dict(params_gradient)
        for name in ("scale", "bias"):
            np.testing.assert_array_equal(pure[name], linen_gradients[0]["params"][name])


def test_a_relu_follows_in_both_layers():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 4, 16)), jnp.float32)
    linen_layer, layer = (
        gw_jax.linen.GroupWhitening(num_groups=4),
        gw_jax.GroupWhitening(16, num_groups=4, rngs=nnx.Rngs(0)),
    )
    variables = linen_layer.init(jax.random.key(0), x)
    expected = jax.nn.relu(layer(x))
    np.testing.assert_array_equal(layer(x, relu=True), expected)
    np.testing.assert_array_equal(linen_layer.apply(variables, x, relu=True), expected)


@pytest.mark.slow
def test_accepts_a_mask():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 8)), jnp.float32)
    mask = jnp.ones((2, 4, 4), bool).at[:, 2:].set(False)
    layer = gw_jax.linen.GroupWhitening(num_groups=4)
    y = layer.apply(layer.init(jax.random.key(0), x), x, mask)
    np.testing.assert_allclose(y[:, :2], gw_jax.group_whiten(x[:, :2], 4), atol=1e-6)
    assert (np.asarray(y)[:, 2:] == 0).all()
