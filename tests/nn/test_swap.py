import functools
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import gw_jax
from gw_jax.errors import ConfigError
from gw_jax.models.pretrained import fill_model
from gw_jax.models.remembered import abstract_model
from gw_jax.tree import variables
from gw_jax.versions import variable_value
from tests.helpers.swap_models import CHANNELS, CNN, MODELS, Containers, ResNet, sequential

ONE = gw_jax.GroupWhitening(8, num_groups=4, rngs=nnx.Rngs(0))
GW = functools.partial(gw_jax.GroupWhitening, num_groups=4, rngs=nnx.Rngs(0))


def images(count=4, size=8, channels=3):
    return jax.random.normal(jax.random.key(7), (count, size, size, channels))


def norms_of(model):
    return [m for _, m in nnx.iter_graph(model) if isinstance(m, gw_jax.GroupWhitening)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_norm_is_replaced_and_a_step_trains_the_new_ones(name):
    make, expected = MODELS[name]
    model = make()
    paths = gw_jax.swap_norms(model, ".*", GW)
    assert expected is None or sorted(paths) == expected
    assert len(norms_of(model)) == len(paths)
    assert not nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    x, labels = images(), jnp.arange(4)
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.sgd(0.01)

    @jax.jit
    def step(parameters, state):
        def loss(parameters):
            logits = nnx.merge(graph, parameters, rest)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, value, gradient

    parameters, state, before, gradient = step(parameters, optimizer.init(parameters))
    *_, after, _ = step(parameters, state)
    assert np.isfinite(before)
    assert after < before
    for norm in norms_of(nnx.merge(graph, gradient, rest)):
        # A zero scale of the block's last norm, as in the public ResNet, leaves no gradient in what is before it.
        assert norm.bias is None or np.isfinite(variable_value(norm.bias)).all()
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_values_equal_those_of_a_model_built_by_hand():
    model = CNN(nnx.BatchNorm, nnx.Rngs(0))
    model.norm1.scale[...] = jnp.linspace(0.5, 2, CHANNELS)
    model.norm2.bias[...] = jnp.linspace(-1, 1, CHANNELS)
    by_hand = CNN(lambda c, rngs: gw_jax.GroupWhitening(c, num_groups=4, rngs=rngs), nnx.Rngs(0))
    for name in ("conv1", "conv2", "head"):
        nnx.update(getattr(by_hand, name), nnx.state(getattr(model, name)))
    by_hand.norm1.scale[...] = model.norm1.scale[...]
    by_hand.norm2.bias[...] = model.norm2.bias[...]
    gw_jax.swap_norms(model, ".*", GW)
    model.eval()
    by_hand.eval()
    np.testing.assert_array_equal(model(images()), by_hand(images()))
    assert set(nnx.to_flat_state(nnx.state(model, nnx.Param)).paths) == set(
        nnx.to_flat_state(nnx.state(by_hand, nnx.Param)).paths
    )


def test_only_matching_paths_are_replaced():
    model = ResNet(nnx.Rngs(0))
    assert gw_jax.swap_norms(model, r"blocks/1/bn\d$", GW) == ["blocks/1/bn1", "blocks/1/bn2"]
    assert isinstance(model.blocks[0].bn1, nnx.BatchNorm)
    assert isinstance(model.blocks[1].projection.layers[1], nnx.BatchNorm)


def test_a_norm_that_is_held_twice_stays_one():
    model = Containers(nnx.Rngs(0))
    gw_jax.swap_norms(model, "shared", GW)
    assert model.shared is model.first["shared"]
    assert isinstance(model.shared, gw_jax.GroupWhitening)


def test_parameters_that_fit_are_kept_and_others_are_new():
    model = nnx.Sequential(nnx.RMSNorm(8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, use_scale=False, rngs=nnx.Rngs(0)))
    scale, bias = model.layers[0].scale, model.layers[1].bias
    gw_jax.swap_norms(model, ".*", GW)
    assert model.layers[0].scale is scale
    assert model.layers[1].bias is bias
    np.testing.assert_array_equal(model.layers[0].bias[...], np.zeros(8))
    np.testing.assert_array_equal(model.layers[1].scale[...], np.ones(8))
    gw_jax.swap_norms(model, ".*", functools.partial(gw_jax.InstanceNorm, rngs=nnx.Rngs(0)))
    assert model.layers[0].scale is None


def test_running_statistics_are_kept_between_batch_norms():
    model = sequential(nnx.Rngs(0))
    model(images())
    mean, var = model.layers[1].mean[...], model.layers[1].var[...]
    model.eval()
    expected = model(images(2))
    gw_jax.swap_norms(model, "layers/1$", functools.partial(gw_jax.BatchNorm, rngs=nnx.Rngs(0)))
    gw_jax.swap_norms(model, "layers/3", functools.partial(nnx.GroupNorm, num_groups=4, rngs=nnx.Rngs(0)))
    np.testing.assert_array_equal(model.layers[1].mean[...], mean)
    np.testing.assert_array_equal(model.layers[1].var[...], var)
    np.testing.assert_allclose(model(images(2)), expected, atol=1e-5)


@pytest.mark.parametrize("new", [gw_jax.BatchNorm, nnx.BatchNorm], ids=["ours", "flax"])
def test_modes_stay_and_switch(new):
    model = ResNet(nnx.Rngs(0))
    model.eval()
    gw_jax.swap_norms(model, ".*", functools.partial(new, rngs=nnx.Rngs(0)))
    norm = model.blocks[0].bn1
    assert norm.use_running_average is True
    before = norm.mean[...]
    model(images(), train=False)
    np.testing.assert_array_equal(norm.mean[...], before)
    model(images(), train=True)  # The call overrides the mode, as in Flax.
    assert np.abs(norm.mean[...] - before).max() > 0
    assert norm.use_running_average is True
    model.train()
    assert norm.use_running_average is False


@pytest.mark.parametrize("new", [gw_jax.GroupWhitening, gw_jax.GroupNorm, nnx.LayerNorm, gw_jax.BatchNorm])
def test_views_work_as_before(new):
    options = {"num_groups": 4} if new in (gw_jax.GroupWhitening, gw_jax.GroupNorm) else {}
    model = CNN(nnx.BatchNorm, nnx.Rngs(0))
    gw_jax.swap_norms(model, ".*", functools.partial(new, rngs=nnx.Rngs(0), **options))
    if hasattr(nnx, "view"):
        model = nnx.view(model, use_running_average=True, deterministic=True)
    else:  # Before Flax 0.12.
        model.eval()
    assert model(images()).shape == (4, 5)


def test_masks_become_one_entry_per_position():
    mask = jnp.arange(8)[None, None, :, None] < jnp.array([8, 5, 3, 8])[:, None, None, None]
    mask = jnp.broadcast_to(mask, (4, 8, 8, 1))
    x = images(channels=8)
    model = nnx.Sequential(nnx.LayerNorm(8, rngs=nnx.Rngs(0)))
    gw_jax.swap_norms(model, ".*", GW)
    expected = GW(8)(x, mask[..., 0])
    np.testing.assert_array_equal(model(x, mask=mask), expected)
    with pytest.raises(ValueError, match="one entry for every position"):
        model(x, mask=jnp.broadcast_to(mask, x.shape))
    back = nnx.Sequential(GW(8))
    gw_jax.swap_norms(back, ".*", functools.partial(nnx.BatchNorm, rngs=nnx.Rngs(0)))
    expected = nnx.BatchNorm(8, rngs=nnx.Rngs(0))(x, mask=jnp.broadcast_to(mask, x.shape))
    np.testing.assert_array_equal(back(x, mask[..., 0], relu=True), nnx.relu(expected))


def test_a_swapped_model_can_be_copied_pickled_and_swapped_again():
    model = nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    gw_jax.swap_norms(model, ".*", GW)
    expected = model(images())
    norm = pickle.loads(pickle.dumps(model.layers[1]))
    np.testing.assert_array_equal(norm(model.layers[0](images()), use_running_average=True), expected)
    np.testing.assert_array_equal(nnx.merge(*nnx.split(model))(images()), expected)
    gw_jax.swap_norms(model, ".*", functools.partial(nnx.BatchNorm, rngs=nnx.Rngs(0)))
    assert type(model.layers[1]) is nnx.BatchNorm


@pytest.mark.parametrize(
    ("pattern", "make", "error", "message"),
    [
        ("*", GW, ValueError, r"no regular expression.*'\.\*', not '\*'"),
        (b".*", GW, TypeError, "pattern=.*of type bytes"),
        ("stage9", GW, ValueError, r"matches nothing\. The norms of this CNN are norm1 \(BatchNorm\), norm2 \(BatchNorm\)"),
        ("conv1", GW, ValueError, r"matches conv1 \(Conv\), but no norm\. The norms of this CNN are norm1"),
        (".*", 3, TypeError, "make=3 is of type int"),
        (".*", gw_jax.GroupWhitening, ValueError, r"norm1 \(BatchNorm of 8 channels\): TypeError: .*rngs"),
        (".*", functools.partial(GW, num_groups=3), ValueError, r"norm1 \(BatchNorm of 8 channels\).*num_groups=3"),
        (".*", lambda c: gw_jax.GroupWhitening, ValueError, r"is a class; call it: GroupWhitening\("),
        (".*", lambda c: None, ValueError, "returned None for norm1"),
        (".*", lambda c: gw_jax.linen.GroupWhitening(), ValueError, "norm1.*Linen module"),
        (".*", lambda c: GW(4), ValueError, "a norm of 4 channels for norm1"),
        (".*", lambda c: ONE, ValueError, "norm2.*stands elsewhere; it must make a new one"),
    ],
)  # fmt: skip
def test_bad_input_names_the_layer_and_changes_nothing(pattern, make, error, message):
    model = CNN(nnx.BatchNorm, nnx.Rngs(0))
    norms = model.norm1, model.norm2
    with pytest.raises(error, match=message):
        gw_jax.swap_norms(model, pattern, make)
    assert (model.norm1, model.norm2) == norms
    assert type(model.norm1) is nnx.BatchNorm


class _Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (_Dense(), TypeError, r"gw_jax\.linen\.swap_norms"),
        (CNN, TypeError, "of type .*; swap_norms needs a flax.nnx.Module"),
        (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), ValueError, "This Linear has no norm to swap"),
        (nnx.BatchNorm(2, rngs=nnx.Rngs(0)), ValueError, "The model is itself a norm"),
        (nnx.Sequential(nnx.BatchNorm(8, axis=1, rngs=nnx.Rngs(0))), ValueError, r"layers/0 \(BatchNorm\) has axis=1"),
        (nnx.Sequential(nnx.LayerNorm(8, feature_axes=(1, 2), rngs=nnx.Rngs(0))), ValueError, "feature_axes="),
    ],
)
def test_models_that_cannot_be_swapped(model, error, message):
    with pytest.raises(error, match=message):
        gw_jax.swap_norms(model, ".*", GW)


def test_norms_that_vmap_made_together_are_refused():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return nnx.BatchNorm(8, rngs=nnx.Rngs(key))

    with pytest.raises(ValueError, match=r"layers/0.*shape \(3, 8\) for 8 channels"):
        gw_jax.swap_norms(nnx.Sequential(make(jax.random.split(jax.random.key(0), 3))), ".*", GW)


def test_a_swapped_network_is_saved_only_as_what_it_is(tmp_path):
    arguments = {"name": "resnet18", "width": 8, "num_classes": 3, "norm": "gn", "norm_options": {"num_groups": 4}}
    abstract = abstract_model(arguments, None, jnp.float32)
    model = fill_model(abstract, {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in variables(abstract).items()})
    gw_jax.swap_norms(model, "stage1", GW)
    gw_jax.swap_norms(model, r"^stem_norm|stage[234].*norm1", GW)
    message = r"changed after create_model.*other norms are .*stage1/0/norm1 \(GroupWhitening\)"
    with pytest.raises(ConfigError, match=message):
        gw_jax.save_pretrained(tmp_path / "model", model)
    swapped = {**arguments, "norm": "gw"}
    # All norms of stage 1 are GroupWhitening, which no placement of create_model gives.
    for config in (arguments, swapped):
        with pytest.raises(ConfigError, match="makes another network than the one to save: other norms are stage1"):
            gw_jax.save_pretrained(tmp_path / "model", model, config)
    assert not (tmp_path / "model").exists()
    gw_jax.swap_norms(model, r"stage1/\d/norm2", functools.partial(gw_jax.BatchNorm, rngs=nnx.Rngs(0)))
    gw_jax.save_pretrained(tmp_path / "model", model, swapped)
    loaded = gw_jax.load_pretrained(tmp_path / "model")
    assert isinstance(loaded.stage1[0].norm1, gw_jax.GroupWhitening)
    assert variables(loaded).keys() == variables(model).keys()
    message = r"head\.bias, head\.kernel are missing, left over or of another shape \(2 in all\)"
    with pytest.raises(ConfigError, match=message):
        gw_jax.save_pretrained(tmp_path / "other", model, {**swapped, "num_classes": 4})
    with pytest.raises(ConfigError, match=r"makes no network: .*norm='gww'"):
        gw_jax.save_pretrained(tmp_path / "other", model, {**swapped, "norm": "gww"})


def test_the_warning_of_few_observations_reaches_a_swapped_model():
    model = nnx.Sequential(nnx.BatchNorm(22, rngs=nnx.Rngs(0)))
    gw_jax.swap_norms(model, ".*", functools.partial(gw_jax.GroupWhitening, num_groups=11, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match="2 observations for each of 11 groups"):
        model(jnp.ones((3, 22)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(jnp.ones((3, 22)))
