"""Every implementation of group whitening is the same function: values, gradients, hard inputs, devices, vmap."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from gw_jax import group_whiten
from gw_jax.ops import inverse_sqrt
from gw_jax.ops.group_whitening import kernel_definition
from gw_jax.ops.inverse_sqrt import inverse_sqrt_newton, inverse_sqrt_newton_vjp
from gw_jax.ops.kernels import choose_kernel, kernel_whiten, placement

TPU, GPU = placement.DeviceKind("tpu", "TPU v5 lite"), placement.DeviceKind("gpu", "NVIDIA H200")
# Shape, groups, and positions of a tile where it is not what would be chosen. For TPUs, whole samples with 1, 2 and 4
# channels a group; tiles of samples in the lanes with 2 positions side by side, 1, and 4; tiles of samples in the sublanes
# with 64, 128 and 256 channels. For GPUs, several tiles, whole and in part.
KERNELS = {
    "samples, 2 channels per group": ((8, 4, 4, 128), 64, None),
    "samples, 4 channels per group": ((16, 3, 3, 256), 64, None),
    "samples, 1 channel per group": ((8, 2, 5, 128), 128, None),
    "lane tiles, 1 channel per group": ((128, 8, 6, 64), 64, 16),
    "lane tiles, 2 channels per group": ((128, 4, 4, 64), 32, None),
    "lane tiles, 4 positions per row": ((128, 8, 8, 32), 16, 32),
    "sublane tiles, 1 channel per group": ((16, 6, 8, 64), 64, 16),
    "sublane tiles, 2 channels per group": ((8, 5, 4, 128), 64, 5),
    "sublane tiles, 4 channels per group": ((8, 4, 4, 256), 64, 8),
    "GPU, 1 channel per group": ((6, 13, 12, 64), 64, None),
    "GPU, 2 channels per group": ((6, 16, 8, 32), 16, None),
    "GPU, 8 channels per group": ((6, 7, 7, 128), 16, None),
    "GPU, fewer positions than a tile could have": ((6, 7, 7, 16), 16, None),
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


def case(name):
    """Shape, groups, and the function that runs the kernel."""
    shape, num_groups, tile = KERNELS[name]
    change = {} if tile is None else {"tile": tile, "kernel": f"tpu_{name.split()[0]}_tiles"}
    device = GPU if name.startswith("GPU") else TPU
    return shape, functools.partial(kernel, num_groups=num_groups, device=device, change=change)


def kernel(x, scale, bias, *, num_groups, device, num_iterations=5, epsilon=0.0, interpret=True, change=None):
    spec = choose_kernel(x.shape, x.dtype, num_groups, num_iterations, epsilon, device, placement.batch_sharding(x))
    assert spec is not None
    spec = dataclasses.replace(spec, interpret=interpret, **(change or {}))
    return kernel_whiten(x, spec, scale, bias, kernel_definition)


def compiling_for(device):
    return placement.compiling_for(SimpleNamespace(platform=device.platform, device_kind=device.kind))


def values_and_gradients(function, x, scale, bias):
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), x.dtype)

    @jax.jit
    def both(x, scale, bias):
        y, pullback = jax.vjp(function, x, scale, bias)
        return y, *pullback(cotangent.astype(y.dtype))

    return jax.tree.map(lambda a: np.asarray(a, np.float64), both(x, scale, bias))


def in_float64(x, scale, bias, **options):
    with jax.enable_x64(True):
        arguments = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias))
        plain = functools.partial(group_whiten, implementation="plain", **options)
        return values_and_gradients(lambda x, s, b: plain(x, scale=s, bias=b), *arguments)


def relative_errors(found, truth):
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, truth, strict=True)]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_float64(name):
    shape, run = case(name)
    arguments = make_input(shape)
    found = values_and_gradients(run, *arguments)
    value, *gradients = relative_errors(found, in_float64(*arguments, num_groups=KERNELS[name][1]))
    assert value <= 2e-5
    assert max(gradients) <= 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "samples, 2 channels per group",
        "lane tiles, 1 channel per group",
        "sublane tiles, 1 channel per group",
        "GPU, 8 channels per group",
    ],
)
def test_kernels_in_bfloat16_cost_its_rounding_only(name):
    shape, run = case(name)
    arguments = make_input(shape, "bfloat16")
    truth = in_float64(*arguments, num_groups=KERNELS[name][1])
    found = values_and_gradients(run, *arguments)
    # A bfloat16 number is off by 2^-9 at most. Input, centred input and output are rounded once each.
    assert max(relative_errors(found, truth)) <= 6 * 2**-9


@pytest.mark.parametrize("platform", [TPU, GPU], ids=["TPU", "GPU"])
def test_a_first_value_far_from_the_rest_does_not_spoil_bfloat16(platform):
    x, scale, bias = make_input((8, 32, 32, 64), "bfloat16")
    # All distances to it are rounded in the same way.
    x = x.at[:, 0, 0].set(40.1)
    found = kernel(x, scale, bias, num_groups=64, device=platform)
    with jax.enable_x64(True):
        exact = jnp.asarray(np.asarray(x, np.float64))
        truth = np.asarray(group_whiten(exact, 64, scale=scale.astype("float64"), bias=bias.astype("float64")))
    rest = np.s_[:, 1:]
    error = np.abs(np.asarray(found, np.float64) - truth)[rest].max()
    assert error <= 6 * 2**-9 * np.abs(truth[rest]).max()


@pytest.mark.parametrize(
    "name", ["samples, 2 channels per group", "lane tiles, 1 channel per group", "GPU, 1 channel per group"]
)
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
    with jax.enable_x64(True):
        exact = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias))
        plain = functools.partial(group_whiten, num_groups=KERNELS[name][1], implementation="plain")
        truth = np.asarray(both(lambda x, s, b: plain(x, scale=s, bias=b), *exact))
    # Rounding leaves an error at every position, but no common one.
    axes = tuple(range(1, len(shape) - 1))
    assert np.abs((found - truth).mean(axes)).max() <= 0.01 * np.abs(truth).max()


@pytest.mark.parametrize(
    ("name", "num_iterations", "epsilon"),
    [
        ("samples, 2 channels per group", 2, 0.0),
        ("samples, 2 channels per group", 7, 1e-3),
        ("lane tiles, 2 channels per group", 2, 1e-3),
        ("GPU, 2 channels per group", 2, 0.0),
        ("GPU, 1 channel per group", 7, 1e-3),
    ],
)
def test_kernels_support_iterations_and_epsilon(name, num_iterations, epsilon):
    shape, run = case(name)
    options = {"num_iterations": num_iterations, "epsilon": epsilon}
    arguments = make_input(shape)
    found = values_and_gradients(functools.partial(run, **options), *arguments)
    assert max(relative_errors(found, in_float64(*arguments, num_groups=KERNELS[name][1], **options))) <= 1e-4


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("samples, 2 channels per group", "float32"),
        ("lane tiles, 1 channel per group", "bfloat16"),
        ("sublane tiles, 1 channel per group", "bfloat16"),
        ("GPU, 1 channel per group", "float32"),
        ("GPU, 8 channels per group", "bfloat16"),
    ],
)
def test_a_constant_sample_becomes_the_bias_with_finite_gradients(name, dtype):
    shape, run = case(name)
    x, scale, bias = make_input(shape, dtype)
    # A value whose sum over many positions is not exact.
    x = x.at[3].set(jnp.asarray(0.1, dtype)).at[5].set(0)
    found = values_and_gradients(run, x, scale, bias)
    for sample in (3, 5):
        np.testing.assert_allclose(found[0][sample], np.broadcast_to(np.asarray(bias, x.dtype), shape[1:]), rtol=1e-6)
    assert all(np.isfinite(array).all() for array in found)


@pytest.mark.parametrize(
    "name", ["samples, 2 channels per group", "lane tiles, 1 channel per group", "GPU, 1 channel per group"]
)
def test_one_bad_sample_does_not_affect_the_others(name):
    shape, run = case(name)
    x, scale, bias = make_input(shape)
    run = jax.jit(run)
    good, bad = run(x, scale, bias), run(x.at[2, 0, 0, 0].set(jnp.nan), scale, bias)
    others = np.arange(shape[0]) != 2
    np.testing.assert_array_equal(good[others], bad[others])
    assert np.isnan(bad[2]).any()


RELU = {"relu": True}


@pytest.mark.parametrize(
    ("name", "dtype"), [("GPU, 1 channel per group", "float32"), ("GPU, 8 channels per group", "bfloat16")]
)
def test_a_relu_in_the_kernel_equals_one_after_it(name, dtype):
    shape, run = case(name)
    arguments = make_input(shape, dtype)
    found = values_and_gradients(functools.partial(run, change=RELU), *arguments)
    truth = values_and_gradients(lambda *a: jax.nn.relu(run(*a)), *arguments)
    assert 0.2 < (found[0] == 0).mean() < 0.8
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_array_equal(a, b)


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


def test_a_relu_is_fused_into_the_gpu_kernels():
    def step(x):
        return jax.value_and_grad(lambda x: group_whiten(x, 16, relu=True, implementation="kernel").sum())(x)

    with compiling_for(GPU):
        _, kernels = operations(jax.make_jaxpr(step)(jnp.ones((64, 4, 4, 16))).jaxpr)
    forward, backward = (operations(kernel)[0] for kernel in kernels)
    assert "lt" in forward
    assert "max" not in forward  # Triton takes the number where one of the two is NaN.
    assert "gt" in backward


@pytest.mark.parametrize("implementation", ["plain", "matmul", "kernel"])
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


def test_scale_and_bias_may_be_missing():
    for name in ("samples, 2 channels per group", "lane tiles, 2 channels per group", "GPU, 2 channels per group"):
        (shape, run), num_groups = case(name), KERNELS[name][1]
        x, _, _ = make_input(shape)
        whiten = jax.jit(functools.partial(group_whiten, num_groups=num_groups), static_argnames="implementation")
        truth = whiten(x, implementation="plain")
        np.testing.assert_allclose(jax.jit(run)(x, None, None), truth, atol=2e-5)
        np.testing.assert_allclose(whiten(x, implementation="matmul"), truth, atol=2e-5)


@pytest.mark.parametrize("name", ["samples, 4 channels per group", "lane tiles, 2 channels per group"])
def test_kernels_are_sharded_over_devices_without_communication(name):
    shape, run = case(name)
    shape = (2 * shape[0], *shape[1:])
    x, scale, bias = make_input(shape)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def gradients(x, scale, bias):
        return values_and_pullback(run, x, scale, bias)

    def values_and_pullback(function, x, scale, bias):
        y, pullback = jax.vjp(function, x, scale, bias)
        return y, pullback(y)[0]

    whole = jax.jit(gradients)(x, scale, bias)
    with placement.batch_sharded_over(mesh, "data"):
        lowered = jax.jit(gradients, out_shardings=split).lower(jax.device_put(x, split), scale, bias)
    compiled = lowered.compile()
    for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert kind not in compiled.as_text()
    for a, b in zip(compiled(jax.device_put(x, split), scale, bias), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "shape", "num_groups"),
    [(TPU, (16, 4, 4, 128), 64), (TPU, (16, 8, 8, 64), 64), (GPU, (64, 4, 4, 16), 16)],
)
def test_kernels_are_preferred_in_a_shard_map(device, shape, num_groups):
    mesh, data = Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data")
    arguments = make_input(shape)

    def gradients(x, scale, bias):
        def loss(x, scale, bias):
            options = {"relu": True, "implementation": "prefer_kernel"}
            return (group_whiten(x, num_groups, scale=scale, bias=bias, **options) ** 2).sum()

        return jax.grad(loss, (0, 1, 2))(x, scale, bias)

    on_each = jax.shard_map(
        gradients, mesh=mesh, in_specs=(data, *2 * [PartitionSpec()]), out_specs=(data, *2 * [PartitionSpec()])
    )
    with compiling_for(device):
        assert "pallas_call[" in str(jax.make_jaxpr(on_each)(*arguments))
        found = jax.jit(on_each)(*arguments)
    for a, b in zip(found, gradients(*arguments), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_vmap_of_a_kernel_is_more_samples():
    shape, run = case("samples, 2 channels per group")
    x, scale, bias = make_input(shape)
    stacked = jnp.stack([x, 2 * x + 1])
    found = jax.vmap(run, (0, None, None))(stacked, scale, bias)
    np.testing.assert_allclose(found, jnp.stack([run(one, scale, bias) for one in stacked]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [("samples, 2 channels per group", {}), ("GPU, 2 channels per group", {}), ("GPU, 2 channels per group", RELU)],
)
def test_on_another_device_the_definition_runs_in_a_kernels_place(name, options):
    shape, run = case(name)
    arguments = make_input(shape)
    found = values_and_gradients(functools.partial(run, interpret=False, change=options), *arguments)
    plain = functools.partial(group_whiten, num_groups=KERNELS[name][1], implementation="plain", **options)
    truth = values_and_gradients(lambda x, s, b: plain(x, scale=s, bias=b), *arguments)
    assert max(relative_errors(found, truth)) <= 1e-6


@pytest.mark.parametrize("shape", [(4, 56, 56, 64), (4, 14, 14, 256), (4, 7, 7, 512)])
@pytest.mark.parametrize(("dtype", "options"), [("bfloat16", {}), ("float32", {}), ("bfloat16", RELU)])
def test_gpu_kernels_are_lowered_for_cuda(shape, dtype, options):
    run = functools.partial(kernel, num_groups=64, device=GPU, interpret=False, change=options)

    def value_and_gradient(x):
        return jax.value_and_grad(lambda x: run(x, None, None).sum())(x)

    triton = "__gpu$xla.gpu.triton"  # XLA compiles what is inside where the GPU is.
    unchecked = [jax.export.DisabledSafetyCheck.custom_call(triton)]
    export = jax.export.export(jax.jit(value_and_gradient), platforms=["cuda"], disabled_checks=unchecked)
    # From JAX 0.12 on, the lowering needs the card.
    card = AbstractMesh((), (), abstract_device=AbstractDevice(GPU.kind, 1, "gpu"))
    with use_abstract_mesh(card):
        program = export(jax.ShapeDtypeStruct(shape, dtype)).mlir_module()
    assert program.count(triton) == 2


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
    with jax.enable_x64(True):
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


def test_the_kernel_that_is_preferred_follows_the_device_that_is_compiled_for():
    x, mesh = jnp.zeros((16, 4, 4, 128), jnp.bfloat16), Mesh(np.array(jax.devices()[:2]), ("data",))
    assert placement.device_kind().platform == "cpu"
    assert not jaxpr_of(x).count("pallas_call")
    with compiling_for(TPU):
        assert jaxpr_of(x).count("pallas_call") == 1
        assert not jaxpr_of(x[:3]).count("pallas_call")  # They fill no block.
        assert jaxpr_of(jnp.zeros((8, 4, 4, 64))).count("pallas_call") == 2  # In tiles.
        with placement.batch_sharded_over(mesh, "data"):
            assert jaxpr_of(x).count("shard_map") == jaxpr_of(x).count("pallas_call") == 1
            assert not jaxpr_of(x[:8]).count("pallas_call")  # A device's share fills none.
    with compiling_for(GPU):
        assert jaxpr_of(jnp.zeros((33, 4, 4, 128), jnp.bfloat16)).count("pallas_call") == 1
        assert not jaxpr_of(x).count("pallas_call")  # Too few samples for all of the card.
        assert not jaxpr_of(jnp.zeros((64, 3, 3, 64))).count("pallas_call")  # Too few rows for a product.
    with compiling_for(placement.DeviceKind("tpu", "TPU v4")):
        assert jaxpr_of(x).count("pallas_call") == 2
        assert not jaxpr_of(jnp.zeros((8, 4, 4, 256))).count("pallas_call")
    for platform, kind in (("tpu", "TPU v3"), ("gpu", "NVIDIA GeForce RTX 4090")):
        with compiling_for(placement.DeviceKind(platform, kind)):
            assert not jaxpr_of(x).count("pallas_call")
    assert placement.device_kind().platform == "cpu"


def jaxpr_of(x):
    return str(jax.make_jaxpr(lambda x: group_whiten(x, 64, implementation="prefer_kernel"))(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "fast"}, "choose one of auto, plain, matmul, kernel"),
        ({"implementation": "matmul", "mask": True}, 'accepts no mask; choose "auto" or "plain"'),
        ({"implementation": "kernel"}, r"There are kernels for TPU v4, .* Choose \"auto\""),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    x = jnp.zeros((2, 4, 4, 8))
    if "mask" in options:
        options = options | {"mask": jnp.ones(x.shape[:-1], bool)}
    with pytest.raises(ValueError, match=message):
        group_whiten(x, 4, **options)
