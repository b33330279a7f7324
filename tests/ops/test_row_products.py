"""The formulations in plain XLA keep one contract: the definition, and the products for CPUs and for accelerators."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gw_jax import group_whiten
from gw_jax.ops.kernels import placement
from gw_jax.versions import enable_x64
from tests.helpers.kernels import make_input, relative_errors

PLATFORMS = {"products, CPU": ("matmul", "cpu"), "products, accelerator": ("matmul", "gpu"), "definition": ("plain", "cpu")}
SLOW = pytest.mark.slow
PRODUCTS = pytest.mark.parametrize("formulation", [pytest.param("products, CPU", marks=SLOW), "products, accelerator"])
ALL = pytest.mark.parametrize("formulation", [pytest.param(name, marks=SLOW) for name in PLATFORMS])
# One channel per group, and three.
SIZES = pytest.mark.parametrize("channels", [8, 24])
# What differs between the two has shorter tests.
MOSTLY_THREE = pytest.mark.parametrize("channels", [pytest.param(8, marks=pytest.mark.long), 24])
MASKED = pytest.mark.parametrize("masked", [False, True])
GROUPS = 8


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield


def device(formulation):
    return placement.compiling_for(SimpleNamespace(platform=PLATFORMS[formulation][1], device_kind="any"))


def whiten(formulation, x, scale, bias, mask=None):
    return group_whiten(x, GROUPS, scale=scale, bias=bias, implementation=PLATFORMS[formulation][0], mask=mask)


@functools.cache
def program(formulation):
    """Output and gradients; inputs of one shape share what is compiled."""

    @jax.jit
    def run(arguments, cotangent, mask):
        y, pullback = jax.vjp(lambda *a: whiten(formulation, *a, mask=mask), *arguments)
        return y, *pullback(cotangent.astype(y.dtype))

    return run


def values_and_gradients(formulation, arguments, cotangent, mask=None):
    with device(formulation):
        return jax.tree.map(lambda a: np.asarray(a, np.float64), program(formulation)(arguments, cotangent, mask))


def in_float64(arguments, cotangent, mask=None):
    with enable_x64():
        exact = [jnp.asarray(np.asarray(a, np.float64)) for a in (*arguments, cotangent)]
        return values_and_gradients("definition", tuple(exact[:3]), exact[3], mask)


def make_case(channels, dtype="float32", shape=(4, 7, 6)):
    arguments = make_input((*shape, channels), dtype)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((*shape, channels)), dtype)
    return arguments, cotangent


def corner_mask(shape=(4, 7, 6)):
    """The top left corner, of another size in every sample."""
    rows, columns = np.arange(shape[1])[:, None], np.arange(shape[2])
    return jnp.asarray(np.stack([(rows < 7 - i) & (columns < 6 - i) for i in range(shape[0])]))


@PRODUCTS
@SIZES
@MASKED
def test_equals_float64(formulation, channels, masked):
    arguments, cotangent = make_case(channels)
    mask = corner_mask() if masked else None
    found = values_and_gradients(formulation, arguments, cotangent, mask)
    value, *gradients = relative_errors(found, in_float64(arguments, cotangent, mask))
    assert value <= 2e-5
    assert max(gradients) <= 1e-4


@pytest.mark.slow
@MOSTLY_THREE
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@MASKED
def test_low_precision_costs_its_rounding_only(channels, dtype, masked):
    arguments, cotangent = make_case(channels, dtype)
    mask = corner_mask() if masked else None
    found = values_and_gradients("products, accelerator", arguments, cotangent, mask)
    # Input, centred input, matrices and output are rounded once each.
    assert max(relative_errors(found, in_float64(arguments, cotangent, mask))) <= 1.5 * float(jnp.finfo(dtype).eps)


@pytest.mark.slow
@MOSTLY_THREE
@pytest.mark.parametrize(("size", "slope"), [(1e-4, 1e-2), (100.0, 1e-4), (3e3, 1e3)])
@MASKED
def test_float16_keeps_its_digits_in_all_of_its_range(channels, size, slope, masked):
    (x, scale, bias), cotangent = make_case(channels, "float16")
    arguments = (x * size).astype("float16"), scale, bias
    cotangent = (cotangent * slope).astype("float16")
    mask = corner_mask() if masked else None
    found = values_and_gradients("products, accelerator", arguments, cotangent, mask)
    truth = in_float64(arguments, cotangent, mask)
    errors = relative_errors(found, truth)
    # A derivative by x below 6e-5 has fewer digits in float16, however it is computed.
    errors[1] = np.abs(found[1] - truth[1]).max() / max(np.abs(truth[1]).max(), 1e-3)
    assert max(errors) <= 3 * float(jnp.finfo("float16").eps)


@pytest.mark.slow
@PRODUCTS
@MOSTLY_THREE
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_forward_mode(formulation, channels, dtype):
    arguments, tangent = make_case(channels, dtype)
    tangents = tangent, arguments[2], arguments[1]

    @functools.partial(jax.jit, static_argnames="formulation")
    def run(formulation, arguments, tangents, mask):
        return jax.jvp(lambda *a: whiten(formulation, *a, mask=mask), arguments, tangents)[1]

    with device(formulation):
        found = run(formulation, arguments, tangents, corner_mask())
    with enable_x64():
        exact = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (arguments, tangents))
        truth = run("definition", *exact, corner_mask())
    (error,) = relative_errors((np.asarray(found, np.float64),), (np.asarray(truth),))
    assert error <= max(1e-5, 0 if dtype == "float32" else 8 * float(jnp.finfo(dtype).eps))


@pytest.mark.slow
@PRODUCTS
def test_second_derivatives_equal_those_of_the_definition(float64, formulation):
    (x, scale, bias), cotangent = (jax.tree.map(lambda a: a.astype(jnp.float64), case) for case in make_case(8))

    @functools.partial(jax.jit, static_argnums=0)
    def run(formulation, x):
        def norm(x):
            return (jax.grad(lambda x: (whiten(formulation, x, scale, bias) ** 3 * cotangent).sum())(x) ** 2).sum()

        return jax.grad(norm)(x)

    with device(formulation):
        found = run(formulation, x)
    np.testing.assert_allclose(found, run("definition", x), atol=1e-9 * np.abs(found).max())


@pytest.mark.slow
@PRODUCTS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch_needs_no_communication(formulation, axis_type):
    (x, scale, bias), cotangent = make_case(24)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:2])
    samples, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def run(x, cotangent, mask, scale, bias):
        return jax.vjp(lambda x: whiten(formulation, x, scale, bias, mask=mask), x)[1](cotangent)[0]

    arguments = jax.device_put((x, cotangent, corner_mask()), samples), jax.device_put((scale, bias), everywhere)
    with device(formulation), jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(*arguments[0], *arguments[1]).compile()
    for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert kind not in compiled.as_text()
    found = compiled(*arguments[0], *arguments[1])
    assert found.sharding.is_equivalent_to(samples, x.ndim)
    truth = in_float64((x, scale, bias), cotangent, mask=corner_mask())[1]
    np.testing.assert_allclose(found, truth, atol=1e-5 * np.abs(truth).max())


@pytest.mark.slow
def test_matrices_between_channels_equal_those_between_groups(monkeypatch):
    monkeypatch.setitem(PLATFORMS, "products, large samples on a TPU", ("matmul", "tpu"))
    arguments, cotangent = make_case(24, shape=(2, 24, 20))
    mask = jnp.asarray(np.random.default_rng(0).random((2, 24, 20)) > 0.3)
    found = values_and_gradients("products, large samples on a TPU", arguments, cotangent, mask)
    assert max(relative_errors(found, in_float64(arguments, cotangent, mask))) <= 1e-5
    tangents = cotangent, *arguments[:0:-1]

    def moved(formulation):
        with device(formulation):
            return jax.jit(lambda a, t: jax.jvp(lambda *a: whiten(formulation, *a, mask), a, t)[1])(arguments, tangents)

    truth = moved("definition")
    np.testing.assert_allclose(moved("products, large samples on a TPU"), truth, atol=1e-5 * np.abs(truth).max())
