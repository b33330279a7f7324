import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gw_jax import group_whiten
from gw_jax.versions import enable_x64
from tests.helpers.whitening import images, relative_error

METHODS = ["newton", "zca"]


def whiten_one_by_one(x, num_groups, method, num_iterations=5, epsilon=None):
    """The definition in float64 numpy, a sample at a time."""
    epsilon = {"newton": 0.0, "zca": 1e-5}[method] if epsilon is None else epsilon
    y = np.empty(x.shape)
    for i, sample in enumerate(np.asarray(x, np.float64)):
        rows = np.moveaxis(sample, -1, 0).reshape(num_groups, -1)
        centred = rows - rows.mean(1, keepdims=True)
        covariance = centred @ centred.T / rows.shape[1] + epsilon * np.eye(num_groups)
        if method == "newton":
            p = np.eye(num_groups)
            for _ in range(num_iterations):
                p = 1.5 * p - 0.5 * p @ p @ p @ covariance / np.trace(covariance)
            whitening = p / np.sqrt(np.trace(covariance))
        else:
            values, vectors = np.linalg.eigh(covariance)
            whitening = vectors / np.sqrt(values) @ vectors.T
        channels_first = (whitening @ centred).reshape(x.shape[-1], *x.shape[1:-1])
        y[i] = np.moveaxis(channels_first, 0, -1)
    return y


def conditioned_images(num_groups, condition, per_group=2, size=28, mean=3.0):
    """Two images whose group covariance has the given condition number, in float32."""
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.standard_normal((num_groups, num_groups)))
    root = vectors * np.sqrt(np.geomspace(1, 1 / condition, num_groups)) @ vectors.T
    rows = root @ rng.standard_normal((2, num_groups, per_group * size * size)) + mean
    x = rows.reshape(2, num_groups, per_group, size, size).transpose(0, 3, 4, 1, 2)
    return x.reshape(2, size, size, -1).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 32), (3, 7, 16), (3, 5, 4, 16), (2, 3, 4, 5, 8)])
def test_matches_the_definition_for_any_number_of_spatial_axes(float64, method, shape):
    x = images(shape, dtype=np.float64)
    expected = whiten_one_by_one(x, 4, method)
    np.testing.assert_allclose(group_whiten(jnp.asarray(x), 4, method=method), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_newton_supports_an_epsilon(float64, epsilon):
    x = images((3, 5, 4, 16), dtype=np.float64)
    expected = whiten_one_by_one(x, 4, "newton", epsilon=epsilon)
    np.testing.assert_allclose(group_whiten(jnp.asarray(x), 4, epsilon=epsilon), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_more_iterations_whiten(float64, method):
    x = images((2, 16, 16, 8), dtype=np.float64)
    y = np.asarray(group_whiten(jnp.asarray(x), 4, method=method, num_iterations=20))
    rows = y.transpose(0, 3, 1, 2).reshape(2, 4, -1)
    covariance = rows @ rows.transpose(0, 2, 1) / rows.shape[-1]
    np.testing.assert_allclose(covariance, np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-4)


@pytest.mark.parametrize("num_groups", [8, 64])
@pytest.mark.parametrize(("num_iterations", "bound"), [(5, 2e-5), (20, 1e-3)])
def test_float32_error(num_groups, num_iterations, bound):
    whiten = jax.jit(functools.partial(group_whiten, num_groups=num_groups, num_iterations=num_iterations))
    for condition in (1.0, 1e2, 1e3, 1e4):
        x = conditioned_images(num_groups, condition)
        with enable_x64():
            truth = np.asarray(whiten(jnp.asarray(x, jnp.float64)))
        assert relative_error(whiten(jnp.asarray(x)), truth) <= bound


@pytest.mark.parametrize("method", METHODS)
def test_float32_gradient_error(method):
    x, weight = conditioned_images(16, 1e2), images((2, 28, 28, 32), seed=1)

    def gradient(dtype):
        def loss(x):
            return (group_whiten(x, 16, method=method) * jnp.asarray(weight, dtype)).sum()

        return jax.jit(jax.grad(loss))(jnp.asarray(x, dtype))

    with enable_x64():
        truth = np.asarray(gradient(jnp.float64))
    assert relative_error(gradient(jnp.float32), truth) <= 1e-4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", METHODS)
def test_low_precision_input_costs_only_the_rounding_of_the_output(dtype, method):
    x = jnp.asarray(conditioned_images(16, 1e2), dtype)
    y = jax.jit(functools.partial(group_whiten, num_groups=16, method=method))(x)
    assert y.dtype == dtype
    truth = whiten_one_by_one(np.asarray(x, np.float64), 16, method)
    rounding = np.abs(truth - np.asarray(jnp.asarray(truth, jnp.float32).astype(dtype), np.float64)).max()
    assert np.abs(truth - np.asarray(y, np.float64)).max() <= 2 * rounding


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gradient", [False, True])
def test_all_products_are_at_the_highest_precision(method, gradient):
    """On the CPU lower precision does not show in the numbers, so the program is read."""

    def function(x):
        return group_whiten(x, 4, method=method).sum()

    with jax.default_matmul_precision("bfloat16"):
        program = str(jax.make_jaxpr(jax.grad(function) if gradient else function)(jnp.ones((2, 3, 3, 8))))
    assert program.count("dot_general[") > 2
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == program.count("dot_general[")


def hard_input(name):
    x = images((4, 6, 6, 16))
    mask = None
    if name == "constant":
        x = np.full_like(x, 0.1)
    elif name == "one hot pixel":
        x = np.full_like(x, 0.1)
        x[:, 2, 3, 5] = 1.0
    elif name == "1e10":
        x = x * np.float32(1e10)
    elif name == "1e-10":
        x = x * np.float32(1e-10)
    elif name == "fewer observations than groups":
        x = images((4, 2, 2, 16))
    elif name == "one observation":
        x = images((4, 16))
    elif name == "all masked":
        mask = np.zeros(x.shape[:-1], bool)
    elif name == "empty batch":
        x = x[:0]
    elif name == "no positions":
        x = x[:, :0]
    return x, mask


@functools.cache
def compiled_whitening(method, num_iterations=5, num_groups=16):
    """``(x, weight, mask, scale, bias)`` to the output and gradients; inputs of one shape share a program."""

    def loss(x, scale, bias, weight, mask):
        y = group_whiten(x, num_groups, method=method, num_iterations=num_iterations, mask=mask, scale=scale, bias=bias)
        return (y * weight).sum(), y

    @jax.jit
    def run(x, weight, mask=None, scale=None, bias=None):
        by = (0,) if scale is None else (0, 1, 2)
        (_, y), gradients = jax.value_and_grad(loss, by, has_aux=True)(x, scale, bias, weight, mask)
        return y, gradients

    return run


@pytest.mark.parametrize("num_iterations", [5, 20])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name",
    [
        "constant",
        "one hot pixel",
        "1e10",
        "1e-10",
        "fewer observations than groups",
        "one observation",
        "all masked",
        "empty batch",
        "no positions",
    ],
)
def test_hard_inputs_have_finite_values_and_gradients(name, method, num_iterations):
    x, mask = hard_input(name)
    y, (gradient,) = compiled_whitening(method, num_iterations)(jnp.asarray(x), images(x.shape, seed=1), mask)
    assert y.shape == gradient.shape == x.shape
    assert np.isfinite(y).all()
    assert np.isfinite(gradient).all()
    if name in ("constant", "one observation", "all masked"):
        assert (np.asarray(y) == 0).all()


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_newton_does_not_depend_on_the_scale_of_the_input(factor):
    x = images((2, 6, 6, 16))
    weight, run = images(x.shape, seed=1), compiled_whitening("newton", num_groups=4)
    y, (gradient,) = run(jnp.asarray(x), weight)
    scaled, (scaled_gradient,) = run(jnp.asarray(x * np.float32(factor)), weight)
    np.testing.assert_allclose(scaled, y, atol=1e-5)
    np.testing.assert_allclose(scaled_gradient * np.float32(factor), gradient, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_one_bad_sample_does_not_affect_the_others(method):
    x = images((4, 6, 6, 16))
    x[1, 2, 2, 3] = np.nan

    @jax.jit
    def whiten(x):
        return group_whiten(x, 4, method=method)

    y, pullback = jax.vjp(whiten, jnp.asarray(x))
    (gradient,) = pullback(y)
    clean = [0, 2, 3]
    assert np.isnan(y[1]).any()
    assert np.isfinite(gradient[jnp.asarray(clean)]).all()
    np.testing.assert_allclose(np.asarray(y)[clean], np.asarray(whiten(jnp.asarray(x[clean]))), atol=1e-6)


@pytest.mark.parametrize("junk", [0.0, 1e6, np.nan])
@pytest.mark.parametrize("corner", [(0, 0), (2, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_masked_padding_changes_nothing(method, corner, junk):
    small, weight = images((3, 5, 4, 16)), images((3, 5, 4, 16), seed=1)
    scale, bias = jnp.asarray(images((16,), seed=2)), jnp.asarray(images((16,), seed=3))
    inside = (slice(None), slice(corner[0], corner[0] + 5), slice(corner[1], corner[1] + 4))
    padded = np.full((3, 9, 8, 16), junk, np.float32)
    padded_weight = np.ones_like(padded)
    mask = np.zeros(padded.shape[:-1], bool)
    padded[inside], padded_weight[inside], mask[inside] = small, weight, True

    run = compiled_whitening(method, num_groups=4)
    y, (gx, gscale, gbias) = run(small, weight, None, scale, bias)
    y_padded, (gx_padded, gscale_padded, gbias_padded) = run(padded, padded_weight, mask, scale, bias)
    assert relative_error(y_padded[inside], y) <= 1e-6
    assert relative_error(gx_padded[inside], gx) <= 1e-6
    assert relative_error(gscale_padded, gscale) <= 1e-6
    assert relative_error(gbias_padded, gbias) <= 1e-6
    assert (np.asarray(y_padded)[~mask] == 0).all()
    assert (np.asarray(gx_padded)[~mask] == 0).all()


def test_vmap_equals_the_batch():
    x = jnp.asarray(images((3, 2, 5, 4, 16)))
    whiten = functools.partial(group_whiten, num_groups=4)
    together = jax.jit(whiten)(x.reshape(6, 5, 4, 16))
    np.testing.assert_allclose(jax.jit(jax.vmap(whiten))(x).reshape(together.shape), together, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("masked", [False, True])
def test_sharded_over_devices_without_communication(method, axis_type, masked):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x = images((16, 5, 4, 16))
    mask = np.ones(x.shape[:-1], bool)
    mask[:, 3:] = False

    def whiten(x, mask):
        return group_whiten(x, 4, method=method, mask=mask if masked else None)

    def gradient(x, mask):
        return jax.grad(lambda x: jnp.sum(whiten(x, mask) ** 2))(x)

    expected, expected_gradient = jax.jit(lambda *arguments: (whiten(*arguments), gradient(*arguments)))(x, mask)
    with jax.set_mesh(mesh):
        arguments = jax.device_put(x, sharding), jax.device_put(mask, sharding)
        compiled = jax.jit(whiten).lower(*arguments).compile()
        y, g = compiled(*arguments), jax.jit(gradient)(*arguments)
    assert y.sharding.is_equivalent_to(sharding, y.ndim)
    assert g.sharding.is_equivalent_to(sharding, g.ndim)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(g, expected_gradient, atol=1e-4)
    assert not collectives(compiled.as_text())


def collectives(text):
    names = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return [name for name in names if name in text]


def test_collectives_are_found_where_there_are_some():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(np.ones((16, 4), np.float32), NamedSharding(mesh, PartitionSpec("data")))
    assert collectives(jax.jit(lambda x: x - x.mean(0, keepdims=True)).lower(x).compile().as_text())


@pytest.mark.parametrize("method", METHODS)
def test_shard_map(method):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(images((16, 5, 4, 16)))

    def gradient(x):
        return jax.grad(lambda x: (group_whiten(x, 4, method=method) ** 3).sum())(x)

    spec = PartitionSpec("data")
    split = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=spec, out_specs=spec))(x)
    np.testing.assert_allclose(split, jax.jit(gradient)(x), atol=1e-4)
