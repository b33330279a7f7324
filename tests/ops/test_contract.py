"""One contract of all formulations in plain XLA and of all kernels, which are interpreted.

What only some of them have is in test_row_products.py (forward mode, float16) and test_implementations.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gw_jax import group_whiten
from gw_jax.versions import enable_x64
from tests.helpers.kernels import in_float64, make_input, relative_errors, values_and_gradients
from tests.helpers.subjects import ALL, FORMULATIONS, LOW_PRECISION, MASKED, OFTEN, SELDOM, subject

DATA = PartitionSpec("data")


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield


def close(found, truth, bound):
    assert max(relative_errors(found, truth)) <= bound


def in_halves(subject):
    """Another batch of the subject's size, its cotangent, and the gradient of a batch by its input."""
    x, scale, bias = make_input(subject.shape)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(subject.shape), x.dtype)

    def gradient(x, cotangent):
        y, pullback = jax.vjp(lambda x: subject(x, scale, bias), x)
        return y, pullback(cotangent)[0]

    return (x, 2 * x + 1), (cotangent, cotangent[::-1]), gradient


@ALL
def test_equals_float64(name):
    of = subject(name)
    arguments = make_input(of.shape)
    value, *gradients = relative_errors(
        values_and_gradients(of, *arguments), in_float64(*arguments, num_groups=of.num_groups)
    )
    assert value <= 2e-5
    assert max(gradients) <= 1e-4


@LOW_PRECISION
def test_low_precision_costs_its_rounding_only(name, dtype):
    of = subject(name)
    arguments = make_input(of.shape, dtype)
    # A number is off by half of eps at most. Input, centred input, matrices and output are rounded once each.
    close(
        values_and_gradients(of, *arguments), in_float64(*arguments, num_groups=of.num_groups), 1.5 * jnp.finfo(dtype).eps
    )


@OFTEN
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_constant_samples_become_the_bias_with_finite_gradients(name, dtype):
    of = subject(name)
    x, scale, bias = make_input(of.shape, dtype)
    # A value whose sum over many positions is not exact.
    x = x.at[0].set(jnp.asarray(0.1, dtype)).at[2].set(0)
    found = values_and_gradients(of, x, scale, bias)
    for sample in (0, 2):
        np.testing.assert_array_equal(found[0][sample], np.broadcast_to(np.asarray(bias, x.dtype), of.shape[1:]))
    assert all(np.isfinite(array).all() for array in found)


@OFTEN
def test_a_nan_stays_in_its_sample(name):
    of = subject(name)
    x, scale, bias = make_input(of.shape)
    good = values_and_gradients(of, x, scale, bias)[:2]
    bad = values_and_gradients(of, x.at[1, 0, 0, 0].set(jnp.nan), scale, bias)[:2]
    others = np.arange(of.shape[0]) != 1
    close([array[others] for array in bad], [array[others] for array in good], 0 if of.exact else 1e-6)
    assert np.isnan(bad[0][1]).any()


@OFTEN
def test_a_large_mean_is_removed(name):
    of = subject(name)
    x, scale, bias = make_input(of.shape)
    arguments = x + 1000, scale, bias
    value, *gradients = relative_errors(
        values_and_gradients(of, *arguments), in_float64(*arguments, num_groups=of.num_groups)
    )
    assert value <= 2e-5
    assert max(gradients) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_mask_equals_an_image_without_padding(name, dtype):
    of = subject(name)
    x, scale, bias = make_input(of.shape, dtype)
    inside = np.s_[:, 1:6, :4]
    small = values_and_gradients(of, x[inside], scale, bias, cotangent_of=(x.shape, inside))
    mask = jnp.zeros(x.shape[:-1], bool).at[inside].set(True)
    junk = jnp.where(mask[..., None], x, jnp.nan)
    found = values_and_gradients(lambda *arguments: of(*arguments, mask=mask), junk, scale, bias)
    outside = ~np.asarray(mask)
    assert (found[0][outside] == 0).all()
    assert (found[1][outside] == 0).all()
    close((found[0][inside], found[1][inside], *found[2:]), small, 4 * jnp.finfo(dtype).eps)


@MASKED
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_mask_is_that_of_the_definition(name, dtype):
    """In any shape, another one for every sample, one of them true nowhere; what does not count is NaN."""
    of = subject(name)
    x, scale, bias = make_input(of.shape, dtype)
    mask = jnp.asarray(np.random.default_rng(2).random(x.shape[:-1]) < 0.6).at[0, :2].set(False).at[1].set(False)
    truth = in_float64(jnp.where(mask[..., None], x, 0), scale, bias, num_groups=of.num_groups, mask=mask)
    junk = jnp.where(mask[..., None], x, jnp.nan)
    found = values_and_gradients(lambda *arguments: of(*arguments, mask=mask), junk, scale, bias)
    outside = ~np.asarray(mask)
    assert (found[0][outside] == 0).all()
    assert (found[1][outside] == 0).all()
    close(found, truth, 3e-5 if dtype == "float32" else 1.5 * jnp.finfo(dtype).eps)


@OFTEN
def test_a_relu_equals_one_after_it(name):
    of = subject(name)
    arguments = make_input(of.shape)
    found = values_and_gradients(lambda *a: of(*a, relu=True), *arguments)
    truth = values_and_gradients(lambda *a: jax.nn.relu(of(*a)), *arguments)
    assert 0.1 < (found[0] == 0).mean() < 0.9
    close(found, truth, 0 if of.exact else 1e-6)


@pytest.mark.parametrize("implementation", ["plain", "matmul"])
@pytest.mark.parametrize("scale", [None, jnp.linspace(0.5, 2, 24)], ids=["no scale", "scale"])
def test_the_gradient_of_a_replicated_input_is_summed_over_devices_with_their_masks(implementation, scale):
    """A derivative by hand, which knows nothing of the devices, has to give what JAX would."""
    x, *_ = make_input((1, 7, 6, 24))
    masks = jnp.asarray(np.random.default_rng(3).random((2, 7, 6)) < 0.7)

    def loss(x, scale, mask):
        return (group_whiten(x, 8, scale=scale, mask=mask, implementation=implementation) ** 3).sum()

    gradient = jax.grad(loss, (0, 1) if scale is not None else 0)
    truth = jax.tree.map(jnp.add, *(gradient(x, scale, mask[None]) for mask in masks))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.shard_map(gradient, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(), DATA), out_specs=PartitionSpec())
    close(*(jax.tree.leaves(result) for result in (jax.jit(split)(x, scale, masks), truth)), 1e-5)


@MASKED
def test_masks_under_vmap_and_on_meshes(name):
    of = subject(name)
    x, scale, bias = make_input(of.shape)
    xs, masks = jnp.stack([x, 2 * x + 1]), jnp.asarray(np.random.default_rng(3).random((2, *of.shape[:3])) < 0.7)

    def gradient(x, mask):
        y, pullback = jax.vjp(lambda x: of(x, scale, bias, mask=mask), x)
        return y, pullback(y)[0]

    run = jax.jit(gradient)
    each = [run(*pair) for pair in zip(xs, masks, strict=True)]
    truth = jax.tree.map(lambda *arrays: np.stack(arrays), *each)
    close(jax.jit(jax.vmap(gradient))(xs, masks), truth, 2e-6)
    both = jax.tree.map(lambda *arrays: np.stack(arrays), each[0], run(x, masks[1]))
    close(jax.jit(jax.vmap(gradient, (None, 0)))(x, masks), both, 2e-6)
    whole = [array.reshape(-1, *array.shape[2:]) for array in truth]
    xs, masks = xs.reshape(-1, *of.shape[1:]), masks.reshape(-1, *of.shape[1:3])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        placed = jax.device_put(xs, NamedSharding(mesh, DATA))
        for spec in (DATA, PartitionSpec(), PartitionSpec(None, None, "data")):
            close(jax.jit(gradient)(placed, jax.device_put(masks, NamedSharding(mesh, spec))), whole, 2e-6)
        close(jax.jit(lambda x: gradient(x, np.asarray(masks)))(placed), whole, 2e-6)


@SELDOM
def test_vmap_and_shard_map_equal_each_batch(name):
    of = subject(name)
    xs, cotangents, gradient = in_halves(of)
    run = jax.jit(gradient)
    truth = jax.tree.map(lambda *each: np.concatenate(each), *(run(*pair) for pair in zip(xs, cotangents, strict=True)))
    mapped = jax.jit(jax.vmap(gradient))(jnp.stack(xs), jnp.stack(cotangents))
    close([np.concatenate(array) for array in mapped], truth, 2e-6)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=DATA, out_specs=DATA, check_vma=False))
    close(split(jnp.concatenate(xs), jnp.concatenate(cotangents)), truth, 2e-6)


@SELDOM
def test_on_an_explicit_mesh_nothing_is_communicated(name):
    of = subject(name)
    xs, cotangents, gradient = in_halves(of)
    truth = jax.tree.map(
        lambda *each: np.concatenate(each), *(jax.jit(gradient)(*pair) for pair in zip(xs, cotangents, strict=True))
    )
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    arguments = jax.device_put((jnp.concatenate(xs), jnp.concatenate(cotangents)), NamedSharding(mesh, DATA))
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradient).lower(*arguments).compile()
    for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert kind not in compiled.as_text()
    close(compiled(*arguments), truth, 2e-6)


def test_the_bounds_notice_one_wrong_element():
    """A contract that nothing could break would be none."""
    arguments = make_input((4, 7, 6, 24))

    def wrong(x, scale, bias):
        return group_whiten(x, 8, scale=scale, bias=bias).at[1, 2, 3, 4].multiply(1.001)

    with enable_x64():
        value, *_ = relative_errors(values_and_gradients(wrong, *arguments), in_float64(*arguments, num_groups=8))
    assert value > 2e-5
    with pytest.raises(AssertionError):
        close((np.ones(2), np.array([1, np.nan])), (np.ones(2), np.ones(2)), 1)
