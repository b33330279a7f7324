"""Every norm on meshes: any sharding of an explicit mesh, and the sharding of the batch is kept."""

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.helpers.norms import NORMS, images, make, with_statistics


@pytest.mark.parametrize("spec", [(None, "data"), (None, None, None, "data")])
@pytest.mark.parametrize("name", NORMS)
def test_any_sharding_of_an_explicit_mesh_gives_the_same_result(name, spec):
    apply, params, stats = with_statistics(make(name))
    x = images((8, 4, 4, 16))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    expected = jax.jit(apply)(params, stats, jnp.asarray(x))
    with jax.set_mesh(mesh):
        found = jax.jit(apply)(params, stats, jax.device_put(x, sharding))
    assert found[0].sharding.is_equivalent_to(sharding, 4)
    chex.assert_trees_all_close(*(jax.tree.map(np.asarray, result) for result in (found, expected)), atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", NORMS)
def test_keeps_the_sharding_of_the_batch(name, axis_type):
    apply, params, stats = with_statistics(make(name))
    x = images()
    expected = apply(params, stats, jnp.asarray(x))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        y, new = jax.jit(apply)(params, stats, jax.device_put(x, sharding))
        gradient = jax.jit(jax.grad(lambda x: (apply(params, stats, x)[0] ** 3).sum()))(jax.device_put(x, sharding))
    assert y.sharding.is_equivalent_to(sharding, y.ndim)
    assert gradient.sharding.is_equivalent_to(sharding, y.ndim)
    np.testing.assert_allclose(y, expected[0], atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new, expected[1])
