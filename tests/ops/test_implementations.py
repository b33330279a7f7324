"""Every implementation of group whitening is the same function: values, gradients, hard inputs, devices, vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax import group_whiten
from gw_jax.ops import inverse_sqrt
from gw_jax.ops.inverse_sqrt import inverse_sqrt_newton
from gw_jax.ops.newton_chain import inverse_sqrt_newton_vjp
from gw_jax.versions import enable_x64
from tests.helpers.kernels import (
    GPU,
    KERNELS,
    NEEDS_KERNELS,
    TPU,
    case,
    compiling_for,
    in_float64,
    kernel,
    make_input,
    relative_errors,
    values_and_gradients,
)


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    """A kernel is interpreted here: what the compiler makes of that is not what runs on a TPU."""
    with quick_compilation():
        yield


@pytest.mark.parametrize("platform", [TPU, GPU], ids=["TPU", "GPU"])
@NEEDS_KERNELS
def test_a_first_value_far_from_the_rest_does_not_spoil_bfloat16(platform):
    x, scale, bias = make_input((8, 32, 32, 64), "bfloat16")
    # All distances to it are rounded in the same way.
    x = x.at[:, 0, 0].set(40.1)
    found = kernel(x, scale, bias, num_groups=64, device=platform)
    with enable_x64():
        exact = jnp.asarray(np.asarray(x, np.float64))
        truth = np.asarray(group_whiten(exact, 64, scale=scale.astype("float64"), bias=bias.astype("float64")))
    rest = np.s_[:, 1:]
    error = np.abs(np.asarray(found, np.float64) - truth)[rest].max()
    assert error <= 6 * 2**-9 * np.abs(truth[rest]).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "samples, 2 channels per group",
        "lane tiles, 1 channel per group",
        "GPU, 1 channel per group",
        "split, 2 channels per group",
    ],
)
@NEEDS_KERNELS
def test_an_equal_derivative_at_all_positions_gives_next_to_none(name):
    shape, run = case(name)
    x, scale, bias = make_input(shape, "bfloat16")
    # The first rows of the images differ from the rest, as where there is sky.
    x = x.at[:, :1].add(8)
    equal = np.random.default_rng(2).standard_normal((shape[0], 1, 1, shape[-1])) * 10
    varying = np.random.default_rng(3).standard_normal(shape) * 0.1

    def both(function, x, scale, bias):
        cotangent = jnp.asarray(equal + varying, x.dtype)
        return jax.jit(lambda x: jax.vjp(lambda x: function(x, scale, bias), x)[1](cotangent)[0])(x)

    found = np.asarray(both(run, x, scale, bias), np.float64)
    with enable_x64():
        exact = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias))
        plain = functools.partial(group_whiten, num_groups=KERNELS[name][1], implementation="plain")
        truth = np.asarray(both(lambda x, s, b: plain(x, scale=s, bias=b), *exact))
    # Rounding leaves an error at every position, but no common one.
    axes = tuple(range(1, len(shape) - 1))
    assert np.abs((found - truth).mean(axes)).max() <= 0.01 * np.abs(truth).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_iterations", "epsilon"),
    [
        ("samples, 2 channels per group", 2, 0.0),
        ("samples, 2 channels per group", 7, 1e-3),
        ("lane tiles, 2 channels per group", 2, 1e-3),
        ("GPU, 2 channels per group", 2, 0.0),
        ("GPU, 1 channel per group", 7, 1e-3),
        ("split, 2 channels per group", 2, 0.0),
        ("split, 2 channels per group", 9, 1e-3),
    ],
)
@NEEDS_KERNELS
def test_kernels_support_iterations_and_epsilon(name, num_iterations, epsilon):
    shape, run = case(name)
    options = {"num_iterations": num_iterations, "epsilon": epsilon}
    arguments = make_input(shape)
    found = values_and_gradients(functools.partial(run, **options), *arguments)
    assert max(relative_errors(found, in_float64(*arguments, num_groups=KERNELS[name][1], **options))) <= 1e-4


def inner(equation):
    """The programs inside an equation of a jaxpr."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
    return [getattr(value, "jaxpr", value) for value in values if hasattr(value, "eqns")]


def operations(jaxpr):
    """The names of all operations of a jaxpr, and the kernels in it."""
    names, kernels = set(), []
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        if equation.primitive.name == "pallas_call":
            kernels += inner(equation)
            continue
        for program in inner(equation):
            found = operations(program)
            names |= found[0]
            kernels += found[1]
    return names, kernels


@NEEDS_KERNELS
def test_a_relu_is_fused_into_the_gpu_kernels():
    def step(x):
        return jax.value_and_grad(lambda x: group_whiten(x, 16, relu=True, implementation="kernel").sum())(x)

    with compiling_for(GPU):
        _, kernels = operations(jax.make_jaxpr(step)(jnp.ones((64, 4, 4, 16))).jaxpr)
    forward, backward = (operations(kernel)[0] for kernel in kernels)
    assert "lt" in forward
    assert "max" not in forward  # Triton takes the number where one of the two is NaN.
    assert "gt" in backward


@pytest.mark.parametrize("implementation", ["plain", "matmul", pytest.param("kernel", marks=NEEDS_KERNELS)])
def test_a_relu_follows_every_implementation(implementation):
    x, scale, bias = make_input((8, 4, 4, 128))

    def whiten(x, scale, bias, relu=False):
        return group_whiten(x, 64, scale=scale, bias=bias, relu=relu, implementation=implementation)

    # A TPU's kernel, in whose place the definition runs.
    with compiling_for(TPU):
        found = values_and_gradients(functools.partial(whiten, relu=True), x, scale, bias)
        truth = values_and_gradients(lambda *a: jax.nn.relu(whiten(*a)), x, scale, bias)
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_masked_position_stays_zero_after_a_relu():
    x, scale, bias = make_input((2, 4, 4, 12))
    mask = jnp.broadcast_to(jnp.arange(4) < 3, (2, 4, 4))
    whiten = jax.jit(functools.partial(group_whiten, num_groups=4, mask=mask), static_argnames="relu")
    found = whiten(x, scale=scale, bias=bias, relu=True)
    np.testing.assert_array_equal(found, jax.nn.relu(whiten(x, scale=scale, bias=bias)))
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("shape", [(8, 5, 6), (6, 4, 4, 12), (5, 24), (2, 3, 2, 2, 6)])
@pytest.mark.parametrize("method", ["newton", "zca"])
def test_products_with_written_out_derivatives_equal_the_definition(float64, shape, method):
    x, scale, bias = (array.astype(jnp.float64) for array in make_input(shape))

    def run(implementation, x, scale, bias):
        return group_whiten(x, 3, method=method, scale=scale, bias=bias, epsilon=1e-3, implementation=implementation)

    found, truth = (values_and_gradients(functools.partial(run, name), x, scale, bias) for name in ("matmul", "plain"))
    assert max(relative_errors(found, truth)) <= 1e-11


@pytest.mark.slow
@NEEDS_KERNELS
@pytest.mark.parametrize("kind", ["samples", "lane tiles", "GPU", "split"])
def test_scale_and_bias_of_a_kernel_may_be_missing(kind):
    name = f"{kind}, 2 channels per group"
    shape, run = case(name)
    x, _, _ = make_input(shape)
    truth = group_whiten(x, KERNELS[name][1], implementation="plain")
    np.testing.assert_allclose(jax.jit(run)(x, None, None), truth, atol=2e-5)


@pytest.mark.parametrize(("shape", "num_groups"), [((8, 4, 4, 128), 64), ((6, 16, 8, 32), 16)])
def test_scale_and_bias_of_the_products_may_be_missing(shape, num_groups):
    x, _, _ = make_input(shape)
    found, truth = (group_whiten(x, num_groups, implementation=name) for name in ("matmul", "plain"))
    np.testing.assert_allclose(found, truth, atol=2e-5)


# Triton's products of float32 are sums over products of parts, and the interpreter's are not.
@pytest.mark.parametrize(("parts", "bound"), [("tf32", 2e-5), ("bfloat16", 2e-4)])
@pytest.mark.parametrize("condition", [1, 1e4])
def test_iterations_in_the_parts_that_tensor_cores_multiply(parts, bound, condition):
    def high(matrix):
        if parts == "bfloat16":
            return matrix.astype(jnp.bfloat16).astype(jnp.float32)
        return (matrix.view(jnp.uint32) & jnp.uint32(0xFFFFE000)).view(jnp.float32)

    def product(a, b):
        (a_high, a_low), (b_high, b_low) = ((high(m), high(m - high(m))) for m in (a, b))
        exact = functools.partial(jnp.matmul, precision="highest")
        return exact(a_low, b_high) + exact(a_high, b_low) + exact(a_high, b_high)

    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.standard_normal((64, 64)))
    covariance, cotangent = (vectors * np.geomspace(1, 1 / condition, 64)) @ vectors.T, rng.standard_normal((64, 64))
    with enable_x64():
        whitening, saved = inverse_sqrt.newton(jnp.asarray(covariance), 5, 0.0, jnp.matmul)
        truth = whitening, inverse_sqrt.newton_vjp(jnp.asarray(cotangent), saved, jnp.matmul)
    whitening, saved = inverse_sqrt.newton(jnp.asarray(covariance, jnp.float32), 5, 0.0, product)
    found = whitening, inverse_sqrt.newton_vjp(jnp.asarray(cotangent, jnp.float32), saved, product)
    assert max(relative_errors(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, truth))) <= bound


@pytest.mark.parametrize("num_iterations", [1, 2, 5, 14, 16])
def test_the_short_derivative_is_that_of_the_iterations(float64, num_iterations):
    rows = np.random.default_rng(0).standard_normal((3, 40, 8))
    covariance = jnp.asarray(rows.swapaxes(1, 2) @ rows / 40)
    found, pullback = jax.vjp(lambda c: inverse_sqrt_newton_vjp(c, num_iterations, 1e-3), covariance)
    truth, expected = jax.vjp(lambda c: inverse_sqrt_newton(c, num_iterations, 1e-3), covariance)
    np.testing.assert_allclose(found, truth, rtol=1e-12)
    # A covariance stays symmetric, so that its derivative's symmetric part is what counts.
    (short,), (long,) = (pull(jnp.asarray(rows[:, :8])) for pull in (pullback, expected))
    np.testing.assert_allclose(short + short.swapaxes(1, 2), long + long.swapaxes(1, 2), rtol=1e-9, atol=1e-12)
