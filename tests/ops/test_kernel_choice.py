"""Which implementation runs: several devices, other devices, vmap, ReLU, and what does not fit."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from gw_jax import group_whiten
from gw_jax.ops.kernels import placement
from gw_jax.versions import enable_x64, no_kernels_because
from tests.helpers.kernels import (
    GPU,
    KERNELS,
    NEEDS_KERNELS,
    RELU,
    TPU,
    TPU_V4,
    case,
    compiling_for,
    kernel,
    make_input,
    relative_errors,
    values_and_gradients,
)

KERNELS_EXIST = re.escape(no_kernels_because() or "There are kernels for TPU v4, ")


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    """A kernel is interpreted here: what the compiler makes of that is not what runs on a TPU."""
    with quick_compilation():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ["samples, 4 channels per group", "lane tiles, 2 channels per group"])
@NEEDS_KERNELS
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "shape", "num_groups"),
    [(TPU, (16, 4, 4, 128), 64), (TPU, (16, 8, 8, 64), 64), (GPU, (64, 4, 4, 16), 16)],
)
@NEEDS_KERNELS
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


@pytest.mark.parametrize(
    ("name", "options"),
    [("samples, 2 channels per group", {}), ("GPU, 2 channels per group", {}), ("GPU, 2 channels per group", RELU)],
)
@NEEDS_KERNELS
def test_on_another_device_the_definition_runs_in_a_kernels_place(name, options):
    shape, run = case(name)
    arguments = make_input(shape)
    found = values_and_gradients(functools.partial(run, interpret=False, change=options), *arguments)
    plain = functools.partial(group_whiten, num_groups=KERNELS[name][1], implementation="plain", **options)
    truth = values_and_gradients(lambda x, s, b: plain(x, scale=s, bias=b), *arguments)
    assert max(relative_errors(found, truth)) <= 1e-6


@pytest.mark.parametrize("shape", [(4, 56, 56, 64), (4, 14, 14, 256), (4, 7, 7, 512)])
@pytest.mark.parametrize(("dtype", "options"), [("bfloat16", {}), ("float32", {}), ("bfloat16", RELU)])
@NEEDS_KERNELS
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


@NEEDS_KERNELS
def test_the_kernel_that_is_preferred_follows_the_device_that_is_compiled_for():
    x, mesh = jnp.zeros((16, 4, 4, 128), jnp.bfloat16), Mesh(np.array(jax.devices()[:2]), ("data",))
    assert placement.device_kind().platform == "cpu"
    assert not jaxpr_of(x).count("pallas_call")
    with compiling_for(TPU):
        assert jaxpr_of(x).count("pallas_call") == 1
        assert not jaxpr_of(x[:3]).count("pallas_call")  # They fill no block.
        assert jaxpr_of(jnp.zeros((8, 4, 4, 64))).count("pallas_call") == 2  # In tiles.
        # Few large samples, whose columns fill the lanes or do not; with a mask, however many.
        for shape in ((2, 40, 120, 64), (1, 40, 40, 64), (3, 40, 40, 256)):
            assert jaxpr_of(jnp.zeros(shape)).count("pallas_call") == 2
            assert jaxpr_of(jnp.zeros(shape), jnp.ones(shape[:3], bool)).count("pallas_call") == 2
        assert jaxpr_of(jnp.zeros((16, 32, 32, 128)), jnp.ones((16, 32, 32), bool)).count("pallas_call") == 2
        assert not jaxpr_of(x, jnp.ones((16, 4, 4), bool)).count("pallas_call")  # Too few positions.
        with enable_x64():
            assert not jaxpr_of(x).count("pallas_call")
        with placement.batch_sharded_over(mesh, "data"):
            assert jaxpr_of(x).count("shard_map") == jaxpr_of(x).count("pallas_call") == 1
            assert not jaxpr_of(x[:8]).count("pallas_call")  # A device's share fills none.
    with compiling_for(GPU):
        assert jaxpr_of(jnp.zeros((33, 4, 4, 128), jnp.bfloat16)).count("pallas_call") == 1
        assert not jaxpr_of(x).count("pallas_call")  # Too few samples for all of the card.
        assert not jaxpr_of(jnp.zeros((64, 3, 3, 64))).count("pallas_call")  # Too few rows for a product.
    with compiling_for(TPU_V4):
        assert jaxpr_of(x).count("pallas_call") == jaxpr_of(jnp.zeros((8, 4, 4, 512))).count("pallas_call") == 2
        assert not jaxpr_of(jnp.zeros((8, 4, 4, 1024))).count("pallas_call")
    for platform, kind in (("tpu", "TPU v3"), ("gpu", "NVIDIA GeForce RTX 4090")):
        with compiling_for(placement.DeviceKind(platform, kind)):
            assert not jaxpr_of(x).count("pallas_call")
    assert placement.device_kind().platform == "cpu"


def jaxpr_of(x, mask=None):
    return str(jax.make_jaxpr(lambda x: group_whiten(x, 64, mask=mask, implementation="prefer_kernel"))(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "fast"}, "choose one of auto, plain, matmul, kernel"),
        ({"implementation": "kernel"}, rf"{KERNELS_EXIST}.* Choose \"auto\""),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    x = jnp.zeros((2, 4, 4, 8))
    with pytest.raises(ValueError, match=message):
        group_whiten(x, 4, **options)
