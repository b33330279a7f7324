"""Every implementation of group whitening is the same function: values, gradients, hard inputs, devices, vmap."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gw_jax import group_whiten
from gw_jax.ops import target
from gw_jax.ops.tpu_whitening import kernel_whiten, plan_for

TPU = "TPU v5 lite"
# Whole samples with 1, 2 and 4 channels a group; tiles with 2 positions side by side, 1, and 4.
KERNELS = {
    "samples, 2 channels a group": ((8, 4, 4, 128), 64),
    "samples, 4 channels a group": ((16, 3, 3, 256), 64),
    "samples, 1 channel a group": ((8, 2, 5, 128), 128),
    "tiles, 1 channel a group": ((128, 8, 6, 64), 64),
    "tiles, 2 channels a group": ((128, 4, 4, 64), 32),
    "tiles, 4 positions a row": ((128, 8, 8, 32), 16),
}


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    """A kernel is interpreted here: what the compiler makes of that is not what runs on a TPU."""
    with quick_compilation():
        yield


def make_input(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal(shape) @ rng.standard_normal((shape[-1], shape[-1])) / shape[-1] ** 0.5 + 0.5
    scale, bias = rng.standard_normal((2, shape[-1]))
    return jnp.asarray(mixed, dtype), jnp.asarray(scale + 1, jnp.float32), jnp.asarray(bias, jnp.float32)


def kernel(x, scale, bias, *, num_groups, num_iterations=5, epsilon=0.0, interpret=True):
    plan = plan_for(x.shape, x.dtype, num_groups, num_iterations, epsilon, TPU, target.split())
    assert plan is not None
    return kernel_whiten(x, dataclasses.replace(plan, interpret=interpret), scale, bias)


def values_and_gradients(function, x, scale, bias):
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), x.dtype)
    y, pullback = jax.vjp(function, x, scale, bias)
    return jax.tree.map(lambda a: np.asarray(a, np.float64), (y, *pullback(cotangent.astype(y.dtype))))


def in_float64(x, scale, bias, **options):
    with jax.enable_x64(True):
        arguments = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias))
        plain = functools.partial(group_whiten, implementation="plain", **options)
        return values_and_gradients(lambda x, s, b: plain(x, scale=s, bias=b), *arguments)


def relative_errors(found, truth):
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, truth, strict=True)]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_float64(name):
    shape, num_groups = KERNELS[name]
    arguments = make_input(shape)
    found = values_and_gradients(functools.partial(kernel, num_groups=num_groups), *arguments)
    value, *gradients = relative_errors(found, in_float64(*arguments, num_groups=num_groups))
    assert value <= 2e-5
    assert max(gradients) <= 1e-4


@pytest.mark.parametrize("name", ["samples, 2 channels a group", "tiles, 1 channel a group"])
def test_kernels_in_bfloat16_cost_its_rounding_only(name):
    shape, num_groups = KERNELS[name]
    arguments = make_input(shape, "bfloat16")
    truth = in_float64(*arguments, num_groups=num_groups)
    found = values_and_gradients(functools.partial(kernel, num_groups=num_groups), *arguments)
    # A bfloat16 number is off by 2^-9 at most. Input, centred input and output are rounded once each.
    assert max(relative_errors(found, truth)) <= 6 * 2**-9


@pytest.mark.parametrize(
    ("name", "num_iterations", "epsilon"),
    [
        ("samples, 2 channels a group", 2, 0.0),
        ("samples, 2 channels a group", 7, 1e-3),
        ("tiles, 2 channels a group", 2, 1e-3),
    ],
)
def test_kernels_take_iterations_and_epsilon(name, num_iterations, epsilon):
    shape, num_groups = KERNELS[name]
    options = {"num_groups": num_groups, "num_iterations": num_iterations, "epsilon": epsilon}
    arguments = make_input(shape)
    found = values_and_gradients(functools.partial(kernel, **options), *arguments)
    assert max(relative_errors(found, in_float64(*arguments, **options))) <= 1e-4


@pytest.mark.parametrize(
    ("name", "dtype"), [("samples, 2 channels a group", "float32"), ("tiles, 1 channel a group", "bfloat16")]
)
def test_a_constant_sample_becomes_the_bias_with_finite_gradients(name, dtype):
    shape, num_groups = KERNELS[name]
    x, scale, bias = make_input(shape, dtype)
    # A value whose sum over many positions is not exact.
    x = x.at[3].set(jnp.asarray(0.1, dtype)).at[5].set(0)
    found = values_and_gradients(functools.partial(kernel, num_groups=num_groups), x, scale, bias)
    for sample in (3, 5):
        np.testing.assert_allclose(found[0][sample], np.broadcast_to(np.asarray(bias, x.dtype), shape[1:]), rtol=1e-6)
    assert all(np.isfinite(array).all() for array in found)


@pytest.mark.parametrize("name", ["samples, 2 channels a group", "tiles, 1 channel a group"])
def test_one_bad_sample_leaves_the_others_alone(name):
    shape, num_groups = KERNELS[name]
    x, scale, bias = make_input(shape)
    run = jax.jit(functools.partial(kernel, num_groups=num_groups))
    good, bad = run(x, scale, bias), run(x.at[2, 0, 0, 0].set(jnp.nan), scale, bias)
    others = np.arange(shape[0]) != 2
    np.testing.assert_array_equal(good[others], bad[others])
    assert np.isnan(bad[2]).any()


@pytest.mark.parametrize("shape", [(8, 5, 6), (6, 4, 4, 12), (5, 24), (2, 3, 2, 2, 6)])
@pytest.mark.parametrize("method", ["newton", "zca"])
def test_products_with_written_out_derivatives_equal_the_definition(float64, shape, method):
    x, scale, bias = (array.astype(jnp.float64) for array in make_input(shape))

    def run(implementation, x, scale, bias):
        return group_whiten(x, 3, method=method, scale=scale, bias=bias, epsilon=1e-3, implementation=implementation)

    found, truth = (values_and_gradients(functools.partial(run, name), x, scale, bias) for name in ("matmul", "plain"))
    assert max(relative_errors(found, truth)) <= 1e-11


def test_scale_and_bias_may_be_missing():
    for shape, num_groups in (KERNELS["samples, 2 channels a group"], KERNELS["tiles, 2 channels a group"]):
        x, _, _ = make_input(shape)
        truth = group_whiten(x, num_groups, implementation="plain")
        np.testing.assert_allclose(kernel(x, None, None, num_groups=num_groups), truth, atol=2e-5)
        np.testing.assert_allclose(group_whiten(x, num_groups, implementation="matmul"), truth, atol=2e-5)


@pytest.mark.parametrize("name", ["samples, 4 channels a group", "tiles, 2 channels a group"])
def test_kernels_are_split_over_devices_without_communication(name):
    shape, num_groups = KERNELS[name]
    shape = (2 * shape[0], *shape[1:])
    x, scale, bias = make_input(shape)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def gradients(x, scale, bias):
        return values_and_pullback(functools.partial(kernel, num_groups=num_groups), x, scale, bias)

    def values_and_pullback(function, x, scale, bias):
        y, pullback = jax.vjp(function, x, scale, bias)
        return y, pullback(y)[0]

    whole = jax.jit(gradients)(x, scale, bias)
    with target.samples_split(mesh, "data"):
        lowered = jax.jit(gradients, out_shardings=split).lower(jax.device_put(x, split), scale, bias)
    compiled = lowered.compile()
    for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert kind not in compiled.as_text()
    for a, b in zip(compiled(jax.device_put(x, split), scale, bias), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_vmap_of_a_kernel_is_more_samples():
    shape, num_groups = KERNELS["samples, 2 channels a group"]
    x, scale, bias = make_input(shape)
    stacked = jnp.stack([x, 2 * x + 1])
    run = functools.partial(kernel, num_groups=num_groups)
    found = jax.vmap(run, (0, None, None))(stacked, scale, bias)
    np.testing.assert_allclose(found, jnp.stack([run(one, scale, bias) for one in stacked]), rtol=1e-6, atol=1e-6)


def test_without_a_tpu_the_definition_runs_in_a_kernels_place():
    shape, num_groups = KERNELS["samples, 2 channels a group"]
    arguments = make_input(shape)
    found = values_and_gradients(functools.partial(kernel, num_groups=num_groups, interpret=False), *arguments)
    truth = values_and_gradients(
        lambda x, s, b: group_whiten(x, num_groups, scale=s, bias=b, implementation="plain"), *arguments
    )
    assert max(relative_errors(found, truth)) <= 1e-6


def test_what_auto_chooses_follows_the_device_that_is_compiled_for():
    @dataclasses.dataclass
    class Device:
        platform: str
        device_kind: str

    x, mesh = jnp.zeros((16, 4, 4, 128), jnp.bfloat16), Mesh(np.array(jax.devices()[:2]), ("data",))
    assert target.current().platform == "cpu"
    assert not jaxpr_of(x).count("pallas_call")
    with target.compiling_for(Device("tpu", TPU)):
        assert jaxpr_of(x).count("pallas_call") == 1
        assert not jaxpr_of(x[:3]).count("pallas_call")  # They fill no block.
        with target.samples_split(mesh, "data"):
            assert jaxpr_of(x).count("shard_map") == jaxpr_of(x).count("pallas_call") == 1
            assert not jaxpr_of(x[:8]).count("pallas_call")  # A device's share fills none.
    with target.compiling_for(Device("tpu", "TPU v4")):
        assert not jaxpr_of(x).count("pallas_call")
    assert target.current().platform == "cpu"


def jaxpr_of(x):
    return str(jax.make_jaxpr(lambda x: group_whiten(x, 64))(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "fast"}, "choose one of auto, plain, matmul, kernel"),
        ({"implementation": "matmul", "mask": True}, 'takes no mask; choose "auto" or "plain"'),
        ({"implementation": "kernel"}, r"There are kernels for TPU v5e .* Choose \"auto\""),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    x = jnp.zeros((2, 4, 4, 8))
    if "mask" in options:
        options = options | {"mask": jnp.ones(x.shape[:-1], bool)}
    with pytest.raises(ValueError, match=message):
        group_whiten(x, 4, **options)
