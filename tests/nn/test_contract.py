"""The contract of all norms."""

import functools

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from gw_jax.nn import NORM_NAMES, norm_options
from tests.helpers.norms import NORMS, WITH_BATCH_STATISTICS, functional, images, make, trained, with_statistics

# The others share their code, or compile as much.
QUICK = ("gw", "bn", "gn", "iternorm", "frozen_bn", "none")


def names(all_names):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in all_names]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "shape", [(8, 16), (4, 2, 3, 4, 16), *(pytest.param(s, marks=pytest.mark.slow) for s in [(8, 7, 16), (8, 5, 4, 16)])]
)
@pytest.mark.parametrize("name", NORM_NAMES)
def test_keeps_shape_and_type(name, shape, train):
    layer = make(name)
    layer.train() if train else layer.eval()
    for dtype in (jnp.float32, jnp.bfloat16):
        y = layer(jnp.asarray(images(shape), dtype))
        assert y.shape == shape
        assert y.dtype == dtype
        assert np.isfinite(np.asarray(y, np.float32)).all()


@pytest.mark.parametrize("name", NORMS)
def test_dtype_is_the_type_of_the_output_only(name):
    layer = make(name, dtype=jnp.bfloat16)
    x = images()
    y = layer(jnp.asarray(x))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), make(name)(jnp.asarray(x)), atol=0.02)
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(layer))):
        assert leaf.dtype in (jnp.float32, jnp.int32)


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_jit_and_vmap_change_nothing(name, train):
    layer = trained(make(name))
    layer.train() if train else layer.eval()
    apply = functional(layer)
    batches = jnp.stack([jnp.asarray(images(seed=seed)) for seed in range(3)])
    expected = np.stack([apply(batch) for batch in batches])
    np.testing.assert_allclose(jax.jit(apply)(batches[0]), expected[0], atol=2e-5)
    np.testing.assert_allclose(jax.vmap(apply)(batches), expected, atol=2e-5)


@pytest.mark.parametrize("name", NORMS)
def test_evaluation_treats_each_sample_separately(name):
    layer = trained(make(name))
    layer.eval()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer)))
    x = jnp.asarray(images())
    np.testing.assert_allclose(layer(x)[2:3], layer(x[2:3]), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(layer)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", names(NORMS))
def test_the_gradient_is_the_derivative(float64, name, train):
    layer = make(name, param_dtype=jnp.float64)
    layer.train()
    layer(jnp.asarray(images(), jnp.float64))
    layer.train() if train else layer.eval()
    apply, params, stats = with_statistics(layer)
    mask = jnp.asarray(np.random.default_rng(1).random((4, 3, 2)) < 0.8)

    @jax.jit
    def scalar(params, x):
        return (apply(params, stats, x, mask)[0] ** 3).sum()

    x = jnp.asarray(images((4, 3, 2, 16)), jnp.float64)
    jax.test_util.check_grads(scalar, (params, x), order=1, modes=["rev"], eps=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", WITH_BATCH_STATISTICS)
def test_a_mapped_axis_is_one_batch(float64, name, masked):
    layer = make(name, param_dtype=jnp.float64)
    whole, params, stats = with_statistics(layer)
    layer.axis_name = "members"
    part, _, _ = with_statistics(layer)
    rng = np.random.default_rng(0)
    x, upstream = (jnp.asarray(rng.standard_normal((8, 5, 4, 16))) for _ in range(2))
    # Members differ in how many positions count; one has none.
    mask = jnp.asarray(rng.random((8, 5, 4)) < np.linspace(0, 1, 8)[:, None, None]) if masked else None

    def run(apply, params, stats, x, upstream, mask):
        y, pullback, stats = jax.vjp(lambda p, x: apply(p, stats, x, mask), params, x, has_aux=True)
        return y, stats, *pullback(upstream)

    expected = jax.jit(lambda x, u, m: run(whole, params, stats, x, u, m))(x, upstream, mask)
    mesh = jax.make_mesh((8,), ("members",), axis_types=(AxisType.Auto,))
    split, same = PartitionSpec("members"), PartitionSpec()
    sharded = jax.shard_map(
        lambda x, u, m: run(part, params, stats, x, u, m),
        mesh=mesh,
        in_specs=(split, split, split),
        out_specs=(split, same, split, split),
        check_vma=False,
    )

    def mapped(x, upstream, mask):
        arguments = [None if a is None else a.reshape(4, 2, *a.shape[1:]) for a in (x, upstream, mask)]
        return jax.vmap(lambda x, u, m: run(part, params, stats, x, u, m), axis_name="members")(*arguments)

    y, new, params_gradient, x_gradient = jax.jit(sharded)(x, upstream, mask)
    np.testing.assert_allclose(y, expected[0], atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), new, expected[1])
    summed = jax.tree.map(lambda g: g.reshape(8, 16).sum(0), params_gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), summed, expected[2])
    np.testing.assert_allclose(x_gradient, expected[3], atol=1e-12)
    y, new, _, x_gradient = jax.jit(mapped)(x, upstream, mask)
    np.testing.assert_allclose(y.reshape(x.shape), expected[0], atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-12), new, expected[1])
    np.testing.assert_allclose(x_gradient.reshape(x.shape), expected[3], atol=1e-12)


@pytest.mark.parametrize("name", WITH_BATCH_STATISTICS)
def test_group_size_is_separate_batches(name):
    apply, params, stats = with_statistics(make(name))
    grouped, _, _ = with_statistics(make(name, group_size=2))
    x = jnp.asarray(images())
    y, new = grouped(params, stats, x)
    parts = [apply(params, stats, x[i : i + 2]) for i in range(0, 8, 2)]
    np.testing.assert_allclose(y, np.concatenate([part[0] for part in parts]), atol=1e-5)
    for key in set(new) - {"num_batches_tracked"}:
        np.testing.assert_allclose(new[key], np.mean([part[1][key] for part in parts], 0), atol=1e-5)
    with pytest.raises(ValueError, match="a batch of 3 examples, which group_size=2 does not divide"):
        grouped(params, stats, x[:3])


@pytest.mark.parametrize("name", WITH_BATCH_STATISTICS)
def test_a_batch_without_observations_changes_no_statistics(name):
    apply, params, stats = with_statistics(trained(make(name)))
    _, new = apply(params, stats, jnp.asarray(images()), jnp.zeros((8, 5, 4), bool))
    for key in set(new) - {"num_batches_tracked"}:
        np.testing.assert_array_equal(new[key], stats[key])


@pytest.mark.parametrize("name", NORMS)
def test_checkpoint_round_trip(name, tmp_path):
    layer = trained(make(name))
    apply, *states = with_statistics(layer)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "layer", dict(zip(("params", "stats"), states, strict=True)))
    checkpointer.wait_until_finished()
    fresh = with_statistics(make(name))[1:]
    restored = checkpointer.restore(tmp_path / "layer", dict(zip(("params", "stats"), fresh, strict=True)))
    x = jnp.asarray(images())
    expected, result = apply(*states, x), apply(restored["params"], restored["stats"], x)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", names(NORM_NAMES))
def test_a_relu_is_applied_to_the_output(name, train):
    layer = make(name)
    layer.train() if train else layer.eval()
    mask = jnp.asarray(np.random.default_rng(1).random((8, 5, 4)) < 0.8)
    graphdef, state = nnx.split(layer)
    state = nnx.to_pure_dict(state)

    @functools.partial(jax.jit, static_argnames="relu")
    def apply(x, relu):
        return nnx.merge(graphdef, state)(x, mask, relu=relu)

    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(images(), dtype)
        # Two programs may round differently; a ReLU that is left out or misplaced is far from that.
        rounding = 2 * float(jnp.finfo(dtype).eps)
        found, expected = apply(x, relu=True), jax.nn.relu(apply(x, relu=False))
        assert found.dtype == dtype
        chex.assert_trees_all_close(
            *(array.astype(jnp.float32) for array in (found, expected)), rtol=rounding, atol=rounding
        )


@pytest.mark.parametrize("value", ["constant", "one hot pixel", 1e10, 1e-10, "all masked", "empty batch"])
@pytest.mark.parametrize("name", NORMS)
def test_hard_inputs_have_finite_values_and_gradients(name, value):
    x, mask = images(), None
    if value in ("constant", "one hot pixel"):
        x = np.full_like(x, 0.1)
    if value == "one hot pixel":
        x[:, 2, 3, 5] = 1
    if isinstance(value, float):
        x = x * np.float32(value)
    if value == "all masked":
        mask = jnp.zeros(x.shape[:-1], bool)
    if value == "empty batch":
        x = x[:0]
    apply = functional(make(name))
    weight = jnp.asarray(images(x.shape, seed=1))
    y = jax.jit(apply)(jnp.asarray(x), mask)
    gradient = jax.jit(jax.grad(lambda x: (apply(x, mask) * weight).sum()))(jnp.asarray(x))
    assert y.shape == gradient.shape == x.shape
    assert np.isfinite(y).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NORM_NAMES)
def test_masked_padding_changes_nothing(name, train):
    small = images()
    padded = np.full((8, 9, 8, 16), np.nan, np.float32)
    mask = np.zeros(padded.shape[:-1], bool)
    padded[:, 2:7, 3:7], mask[:, 2:7, 3:7] = small, True
    layer = make(name)
    layer.train() if train else layer.eval()
    apply = functional(layer)
    y = np.asarray(apply(jnp.asarray(padded), jnp.asarray(mask)))
    np.testing.assert_allclose(y[:, 2:7, 3:7], apply(jnp.asarray(small)), atol=5e-6)
    assert (y[~mask] == 0).all()


@pytest.mark.parametrize("name", NORMS)
def test_bad_inputs_are_named(name):
    layer = make(name)
    with pytest.raises(ValueError, match=r"made for 16 channels and got shape \(2, 4, 4, 8\)"):
        layer(jnp.zeros((2, 4, 4, 8)))
    with pytest.raises(TypeError, match="uint8"):
        layer(jnp.zeros((2, 4, 4, 16), jnp.uint8))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\)"):
        layer(jnp.zeros((2, 4, 4, 16)), jnp.ones((2, 4), bool))


@pytest.mark.parametrize("name", [name for name in NORMS if "use_scale" in norm_options(name)])
def test_parameters_can_be_left_out(name):
    layer = make(name, use_scale=False, use_bias=False)
    assert not jax.tree.leaves(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))
    full, x = make(name), jnp.asarray(images())
    expected = (full(x) - full.bias[...].reshape(1, 1, 1, 16)) / full.scale[...].reshape(1, 1, 1, 16)
    np.testing.assert_allclose(layer(x), expected, atol=2e-6)
