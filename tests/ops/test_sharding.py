import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gw_jax import group_whiten
from gw_jax.ops.kernels import placement
from tests.helpers.kernels import NEEDS_KERNELS

TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield


def images(shape=(8, 4, 4, 16)):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [(None, "a"), (None, None, None, "b"), ("a", None, None, "b"), (("a", "b"),)])
@pytest.mark.parametrize("implementation", ["auto", "plain"])
def test_any_sharding_of_an_explicit_mesh_gives_the_same_result(implementation, spec):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec(*spec))

    def whiten(x, scale):
        mask = None if implementation == "auto" else (x > 1).any(-1)
        return (group_whiten(x, 8, scale=scale, mask=mask, implementation=implementation) ** 3).mean()

    def run(x, scale):
        return group_whiten(x, 8, scale=scale, implementation=implementation), *jax.grad(whiten, (0, 1))(x, scale)

    x, scale = images(), jnp.linspace(1, 2, 16)
    expected = jax.jit(run)(x, scale)
    with jax.set_mesh(mesh):
        found = jax.jit(run)(jax.device_put(x, sharding), jax.device_put(scale, NamedSharding(mesh, PartitionSpec("b"))))
    assert found[0].sharding.is_equivalent_to(sharding, 4)
    assert found[1].sharding.is_equivalent_to(sharding, 4)
    chex.assert_trees_all_close(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected), rtol=2e-5, atol=2e-5)


def count_kernels(function, x):
    return str(jax.make_jaxpr(function)(x)).count("pallas_call[")


def test_what_is_traced_within_a_context_is_not_used_outside():
    @jax.jit
    def context(x):
        tpu, sharding = placement.device_kind().platform == "tpu", placement.batch_sharding(x)
        return jnp.asarray([int(tpu), 0 if sharding is None else sharding.num_devices])

    x, mesh = images(), Mesh(np.array(jax.devices()[:4]), ("data",))
    for _ in range(2):
        assert context(x).tolist() == [0, 0]
        with placement.compiling_for(TPU):
            assert context(x).tolist() == [1, 0]
        with placement.batch_sharded_over(mesh, "data"):
            assert context(x).tolist() == [0, 4]


@NEEDS_KERNELS
def test_a_function_traced_for_one_device_is_retraced_for_another():
    x = images((16, 4, 4, 128))
    whiten = jax.jit(lambda x: group_whiten(x, 64, implementation="prefer_kernel"))
    with placement.compiling_for(TPU):
        whiten.lower(x)
        assert count_kernels(whiten, x) == 1
    assert count_kernels(whiten, x) == 0


@NEEDS_KERNELS
def test_a_function_traced_for_one_mesh_is_retraced_for_another():
    x = images((32, 4, 4, 128))
    whiten = jax.jit(lambda x: group_whiten(x, 64, implementation="prefer_kernel"))
    with placement.compiling_for(TPU):
        for devices in (2, 4):
            with placement.batch_sharded_over(Mesh(np.array(jax.devices()[:devices]), ("data",)), "data"):
                assert f"'data': {devices}" in str(jax.make_jaxpr(whiten)(x)).replace('"', "'")
        assert "shard_map" not in str(jax.make_jaxpr(whiten)(x))


@NEEDS_KERNELS
@pytest.mark.slow
def test_kernels_read_the_sharding_from_the_type_on_an_explicit_mesh():
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    x = images((32, 4, 4, 128))
    with placement.compiling_for(TPU), jax.set_mesh(mesh):
        for spec, devices in ((PartitionSpec(("a", "b")), 4), (PartitionSpec("b"), 2), (PartitionSpec(), 1)):
            sharded = jax.device_put(x, NamedSharding(mesh, spec))
            whiten = functools.partial(group_whiten, num_groups=64, implementation="prefer_kernel")
            program = str(jax.make_jaxpr(whiten)(sharded))
            assert program.count("pallas_call[") == 1
            assert ("shard_map" in program) == (devices > 1)
            # The definition runs in the kernel's place, on every device for its samples.
            found = jax.jit(whiten)(sharded)
            np.testing.assert_allclose(found, group_whiten(x, 64, implementation="plain"), atol=2e-5)
