import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from gw_jax import BatchNorm, make_norm


def images(shape=(8, 3, 2, 4), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 3 + 1


def run(layer, x, mask=None):
    """Output and running statistics of one training call, as a pure function of ``x``."""
    graphdef, state = nnx.split(layer)
    model = nnx.merge(graphdef, nnx.to_pure_dict(state))
    y = model(x, mask)
    return y, model.mean[...], model.var[...]


def test_running_variance_is_unbiased_and_momentum_is_the_decay():
    x = images()
    _, mean, var = run(BatchNorm(4, momentum=0.7, rngs=nnx.Rngs(0)), jnp.asarray(x))
    values = x.reshape(-1, 4)
    np.testing.assert_allclose(mean, 0.3 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(var, 0.7 + 0.3 * values.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("group_size", [1, 2, 4, 8])
def test_groups_are_batches_of_their_own(group_size):
    x = images()
    y, mean, var = run(BatchNorm(4, group_size=group_size, rngs=nnx.Rngs(0)), jnp.asarray(x))
    parts = [run(BatchNorm(4, rngs=nnx.Rngs(0)), jnp.asarray(part)) for part in np.split(x, 8 // group_size)]
    np.testing.assert_allclose(y, np.concatenate([part[0] for part in parts]), atol=1e-5)
    np.testing.assert_allclose(mean, np.mean([part[1] for part in parts], 0), atol=1e-5)
    np.testing.assert_allclose(var, np.mean([part[2] for part in parts], 0), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("transform", ["vmap", "shard_map"])
def test_axis_name_gives_the_statistics_of_the_global_batch(transform, masked):
    x = images((8, 3, 2, 4))
    # Members of the axis keep different numbers of positions.
    mask = jnp.asarray(np.random.default_rng(1).random((8, 3, 2)) < 0.7) if masked else jnp.ones((8, 3, 2), bool)
    weight = jnp.asarray(images(seed=2))

    def gradient(axis_name, x, mask, weight):
        def loss(x):
            y, mean, var = run(BatchNorm(4, axis_name=axis_name, rngs=nnx.Rngs(0)), x, mask)
            return (y * weight).sum(), (y, mean, var)

        g, aux = jax.grad(loss, has_aux=True)(x)
        return (g, *aux)

    expected = gradient(None, jnp.asarray(x), mask, weight)
    arguments = jnp.asarray(x), mask, weight
    if transform == "vmap":
        split = [a.reshape(4, 2, *a.shape[1:]) for a in arguments]
        g, y, mean, var = jax.vmap(lambda *a: gradient("batch", *a), axis_name="batch")(*split)
        mean, var = mean[0], var[0]
    else:
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
        data, whole = PartitionSpec("batch"), PartitionSpec()
        function = jax.shard_map(
            lambda *a: gradient("batch", *a), mesh=mesh, in_specs=(data,) * 3, out_specs=(data, data, whole, whole)
        )
        g, y, mean, var = jax.jit(function)(*arguments)
    for result, truth in zip((g, y, mean, var), expected, strict=True):
        np.testing.assert_allclose(np.asarray(result).reshape(truth.shape), truth, atol=2e-5)


def test_groups_within_the_members_of_an_axis():
    x = images()
    expected = run(BatchNorm(4, group_size=2, rngs=nnx.Rngs(0)), jnp.asarray(x))
    layer = BatchNorm(4, group_size=2, axis_name="batch", rngs=nnx.Rngs(0))
    y, mean, var = jax.vmap(lambda x: run(layer, x), axis_name="batch")(jnp.asarray(x).reshape(2, 4, 3, 2, 4))
    np.testing.assert_allclose(y.reshape(x.shape), expected[0], atol=1e-5)
    np.testing.assert_allclose(mean[0], expected[1], atol=1e-5)
    np.testing.assert_allclose(var[0], expected[2], atol=1e-5)


def test_statistics_stay_in_float32():
    layer = BatchNorm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    # A mean of 1000 and a deviation of 1: bfloat16 statistics would lose the deviation.
    x = (np.random.default_rng(0).standard_normal((512, 4)) + 1000).astype(np.float32)
    layer(jnp.asarray(x))
    assert layer.mean[...].dtype == layer.var[...].dtype == jnp.float32
    np.testing.assert_allclose(layer.mean[...], 0.1 * x.mean(0), rtol=1e-6)
    layer.mean[...], layer.var[...] = jnp.asarray(x.mean(0)), jnp.asarray(x.var(0))
    layer.eval()
    y = layer(jnp.asarray(x))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), (x - x.mean(0)) / x.std(0), atol=0.02)


def by_method(layer):
    layer.eval()
    return layer


def by_view(layer):
    return nnx.view(layer, use_running_average=True)


NO_VIEW = pytest.mark.skipif(not hasattr(nnx, "view"), reason="nnx.view came with Flax 0.12")


@pytest.mark.parametrize("freeze", [by_method, pytest.param(by_view, marks=NO_VIEW)])
def test_evaluation_changes_nothing(freeze):
    layer = BatchNorm(4, rngs=nnx.Rngs(0))
    x = jnp.asarray(images())
    freeze(layer)(x)
    np.testing.assert_array_equal(layer.mean[...], np.zeros(4))
    layer.train()
    layer(x)
    assert (np.asarray(layer.mean[...]) != 0).all()


def test_no_gradient_flows_into_the_running_statistics():
    layer = BatchNorm(4, rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda x: sum(s.sum() for s in run(layer, x)[1:]))(jnp.asarray(images()))
    assert (np.asarray(gradient) == 0).all()


def test_a_batch_that_the_groups_do_not_divide_is_named():
    with pytest.raises(ValueError, match="batch of 8 examples, which group_size=3 does not divide"):
        BatchNorm(4, group_size=3, rngs=nnx.Rngs(0))(jnp.asarray(images()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bn", "dbn", "dbn_sigma", "iternorm", "iternorm_sigma"])
def test_rows_of_running_statistics_average_to_the_usual_ones(float64, name):
    options = {"group_size": 4, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    usual, rows = make_norm(name, 6, **options), make_norm(name, 6, statistics_sets=3, **options)
    x = jax.random.normal(jax.random.key(0), (3, 12, 5, 5, 6), jnp.float64) * 3 + 2
    for batch in x:
        np.testing.assert_array_equal(rows(batch), usual(batch))
    assert rows.mean.shape == (3, 6)
    for layer in (usual, rows):
        layer.set_view(use_running_average=True)
    np.testing.assert_allclose(rows(x[0]), usual(x[0]), rtol=1e-9, atol=1e-9)
    rows.set_view(use_running_average=False)
    with pytest.raises(ValueError, match=r"a batch of 2 sets of examples and keeps the statistics of statistics_sets=3"):
        rows(x[0, :8])
    with pytest.raises(ValueError, match="needs a group_size"):
        make_norm(name, 6, statistics_sets=3, rngs=nnx.Rngs(0))
