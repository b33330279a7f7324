import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gw_jax

CHANNELS = 8


def make_gw(num_features):
    del num_features
    return gw_jax.linen.GroupWhitening(num_groups=4)


def images(count=4, size=8, channels=3):
    return jax.random.normal(jax.random.key(7), (count, size, size, channels))


class Block(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x):
        return x + nn.relu(self.norm()(nn.Conv(CHANNELS, (3, 3), use_bias=False)(x)))


class CNN(nn.Module):
    """As in public Linen networks: the norm is a partial, its mode an argument of the call."""

    norm: Any = nn.BatchNorm
    block: Any = Block

    @nn.compact
    def __call__(self, x, train=True):
        options = {"use_running_average": not train} if self.norm is nn.BatchNorm else {}
        norm = functools.partial(self.norm, **options)
        x = nn.relu(norm(name="stem_norm")(nn.Conv(CHANNELS, (3, 3))(x)))
        for index in range(2):
            x = self.block(norm, name=f"block{index}")(x)
        return nn.Dense(5)(x.mean((1, 2)))


class Encoder(nn.Module):
    """Layers from ``setup``, several methods, the mode in the norm's call."""

    def setup(self):
        self.conv = nn.Conv(CHANNELS, (3, 3))
        self.norm = nn.BatchNorm()
        self.head = nn.Dense(5)
        self.last = nn.LayerNorm()

    def encode(self, x, train=True):
        return nn.relu(self.norm(self.conv(x), not train)).mean((1, 2))

    def decode(self, features):
        return self.head(self.last(features))

    def __call__(self, x, train=True):
        return self.decode(self.encode(x, train))


class ByHand(Encoder):
    def setup(self):
        self.conv = nn.Conv(CHANNELS, (3, 3))
        self.norm = gw_jax.linen.GroupWhitening(num_groups=4)
        self.head = nn.Dense(5)
        self.last = nn.LayerNorm()

    def encode(self, x, train=True):
        del train
        return nn.relu(self.norm(self.conv(x))).mean((1, 2))


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


@pytest.mark.slow
def test_checkpoints_fit_and_values_equal_those_of_a_network_built_by_hand():
    model, x = CNN(), images()
    old = model.init(jax.random.key(0), x)
    old["params"]["stem_norm"]["scale"] = jnp.linspace(0.5, 2, CHANNELS)
    swapped = gw_jax.linen.swap_norms(model, ".*", make_gw)
    assert isinstance(swapped, CNN)
    new = swapped.init(jax.random.key(0), x)
    assert list(new) == ["params"]
    assert shapes(new["params"]) == shapes(old["params"])
    # The autonames of the blocks' norms are those of another class in the network built by hand.
    by_hand = CNN(norm=functools.partial(gw_jax.linen.GroupWhitening, num_groups=4))
    params = jax.tree.map(lambda leaf: leaf, old["params"])
    for block in ("block0", "block1"):
        params[block]["GroupWhitening_0"] = params[block].pop("BatchNorm_0")
    expected = by_hand.apply({"params": params}, x)
    for train in (True, False):
        np.testing.assert_array_equal(swapped.apply({"params": old["params"]}, x, train), expected)
    np.testing.assert_allclose(jax.jit(swapped.apply)(old, x), expected, atol=1e-5)
    assert isinstance(model, CNN)
    assert "batch_stats" in model.init(jax.random.key(0), x)


@pytest.mark.slow
def test_a_step_trains_it():
    swapped, x, labels = gw_jax.linen.swap_norms(CNN(), ".*", make_gw), images(), jnp.arange(4)
    params = swapped.init(jax.random.key(0), x)["params"]
    optimizer = optax.sgd(0.1)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = swapped.apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, gradient

    params, state, before, gradient = step(params, optimizer.init(params))
    *_, after, _ = step(params, state)
    assert after < before
    assert np.abs(gradient["block0"]["BatchNorm_0"]["scale"]).max() > 0


@pytest.mark.slow
def test_every_method_is_swapped():
    x = images()
    swapped = gw_jax.linen.swap_norms(Encoder(), "^norm$", make_gw)
    variables = swapped.init(jax.random.key(0), x)
    expected = ByHand().apply(variables, x, method="encode")
    functions = ("encode", Encoder.encode, lambda m, x: m.encode(x), lambda m, x: nn.relu(m.norm(m.conv(x))).mean((1, 2)))
    for method in functions:
        np.testing.assert_array_equal(swapped.apply(variables, x, method=method), expected)
    np.testing.assert_array_equal(swapped.bind(variables).encode(x), expected)
    # A method without norms to swap is none that failed to match.
    swapped.apply(variables, expected, method="decode")


@pytest.mark.slow
def test_it_works_inside_other_modules():
    class Outer(nn.Module):
        def setup(self):
            self.backbone = gw_jax.linen.swap_norms(Encoder(), "^norm$", make_gw)

        def __call__(self, x):
            return self.backbone(x)

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, x):
            return gw_jax.linen.swap_norms(Encoder(parent=None), "^norm$", make_gw)(x)

    class Bound(nn.Module):
        @nn.compact
        def __call__(self, x):
            return gw_jax.linen.swap_norms(Encoder(), "^norm$", make_gw)(x)

    x = images()
    for outer, name in ((Outer(), "backbone"), (Compact(), "Encoder_0")):
        output, variables = outer.init_with_output(jax.random.key(0), x)
        expected = ByHand().apply({"params": variables["params"][name]}, x)
        np.testing.assert_array_equal(output, expected)
    with pytest.raises(ValueError, match=r"Encoder is bound.*parent=None"):
        Bound().init(jax.random.key(0), x)


@pytest.mark.slow
@pytest.mark.parametrize("transform", [nn.jit, nn.remat])
def test_transformed_blocks(transform):
    """Linen's jit keeps what it has traced: with the old norms before the exchange, with the new ones after it."""
    x, plain = images(), gw_jax.linen.swap_norms(CNN(), ".*", make_gw)
    model = CNN(block=transform(Block))
    old = model.init(jax.random.key(0), x)
    before = model.apply(old, x, mutable=["batch_stats"])[0]
    swapped = gw_jax.linen.swap_norms(model, ".*", make_gw)
    variables = {"params": old["params"]}
    expected = plain.apply(variables, x)
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(swapped.apply(variables, x), expected, atol=1e-5)
    wider = gw_jax.linen.swap_norms(model, ".*", lambda c: gw_jax.linen.GroupWhitening(num_groups=8))
    assert np.abs(wider.apply(variables, x) - expected).max() > 1e-3
    np.testing.assert_array_equal(model.apply(old, x, mutable=["batch_stats"])[0], before)
    gradients = [jax.grad(lambda v, m=m: m.apply(v, x).sum())(variables) for m in (swapped, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)


class Repeated(nn.Module):
    def setup(self):
        axes = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        self.conv = nn.Conv(CHANNELS, (3, 3))
        self.blocks = nn.scan(ScannedBlock, length=2, **axes)()
        self.norms = nn.vmap(nn.BatchNorm, in_axes=1, out_axes=1, **axes)(use_running_average=False)

    def __call__(self, x):
        return self.norms(self.blocks(self.conv(x), None)[0])


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block(functools.partial(nn.BatchNorm, use_running_average=False))(x), None


@pytest.mark.slow
def test_scanned_and_mapped_norms():
    x = images()
    old = Repeated().init(jax.random.key(0), x)
    swapped = gw_jax.linen.swap_norms(Repeated(), ".*", make_gw)
    output, new = swapped.init_with_output(jax.random.key(0), x)
    assert list(new) == ["params"]
    assert shapes(new["params"]) == shapes(old["params"])
    y = nn.Conv(CHANNELS, (3, 3)).apply({"params": new["params"]["conv"]}, x)
    for layer in range(2):
        params = jax.tree.map(lambda leaf, layer=layer: leaf[layer], new["params"]["blocks"]["Block_0"])
        params["GroupWhitening_0"] = params.pop("BatchNorm_0")
        y = Block(functools.partial(gw_jax.linen.GroupWhitening, num_groups=4)).apply({"params": params}, y)
    expected = jax.vmap(lambda rows: gw_jax.group_whiten(rows, 4), 1, 1)(y)
    np.testing.assert_allclose(output, expected, atol=1e-4)


def test_modes_and_statistics_of_new_batch_norms():
    x = images()
    model = gw_jax.linen.swap_norms(CNN(), ".*", lambda c: nn.BatchNorm(momentum=0.5))
    variables = model.init(jax.random.key(0), x)
    reference = CNN(norm=nn.BatchNorm)
    for train in (True, False):
        got, changed = model.apply(variables, x, train, mutable=["batch_stats"])
        np.testing.assert_array_equal(got, reference.apply(variables, x, train, mutable=["batch_stats"])[0])
        moved = np.abs(changed["batch_stats"]["stem_norm"]["mean"]).max() > 0
        assert moved == train


def test_a_second_swap_applies_last():
    x = images()
    once = gw_jax.linen.swap_norms(CNN(), ".*", lambda c: nn.LayerNorm())
    twice = gw_jax.linen.swap_norms(once, "stem", lambda c: nn.BatchNorm())
    assert list(once.init(jax.random.key(0), x)) == ["params"]
    assert list(twice.init(jax.random.key(0), x)["batch_stats"]) == ["stem_norm"]


@pytest.mark.slow
def test_masks_become_one_entry_per_position():
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.LayerNorm()(x, mask=mask)

    x = images(channels=8)
    mask = jnp.broadcast_to(jnp.arange(8)[None, :, None, None] < 5, (4, 8, 8, 1))
    swapped = gw_jax.linen.swap_norms(Masked(), ".*", make_gw)
    got, _ = swapped.init_with_output(jax.random.key(0), x, mask)
    np.testing.assert_array_equal(got, gw_jax.group_whiten(x, 4, mask=mask[..., 0]))


@pytest.mark.parametrize(
    ("pattern", "make", "error", "message"),
    [
        ("*", make_gw, ValueError, r"no regular expression.*'\.\*', not '\*'"),
        ("stage9", make_gw, ValueError, r"matches none of the norms.*stem_norm \(BatchNorm\), block0/BatchNorm_0"),
        (".*", 3, TypeError, "make=3 is of type int"),
        (".*", gw_jax.linen.GroupWhitening, TypeError, r"as num_groups\. Give a function.*GroupWhitening\(\)"),
        (".*", functools.partial(nn.LayerNorm, use_bias=False), TypeError, "as epsilon"),
        (".*", lambda c: gw_jax.linen.GroupWhitening(num_groups=3), ValueError, r"stem_norm \(BatchNorm of 8 ch.*=3"),
        (".*", gw_jax.GroupWhitening, ValueError, r"make\(8\) failed for stem_norm .*rngs"),
        (".*", lambda c: gw_jax.GroupWhitening(c, rngs=nnx.Rngs(0)), ValueError, "module of flax.nnx"),
        (".*", lambda c: nn.LayerNorm, ValueError, r"is a class; call it: LayerNorm\(\)"),
    ],
)  # fmt: skip
def test_bad_input_names_the_layer(pattern, make, error, message):
    with pytest.raises(error, match=message):
        gw_jax.linen.swap_norms(CNN(), pattern, make).init(jax.random.key(0), images())
    # Nothing of the failed call is left.
    good = gw_jax.linen.swap_norms(CNN(), ".*", make_gw)
    assert list(good.init(jax.random.key(0), images())) == ["params"]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), TypeError, r"flax.nnx; gw_jax\.swap_norms"),
        (CNN, TypeError, "needs a flax.linen.Module"),
        (nn.BatchNorm(), ValueError, "The model is itself a norm"),
    ],
)
def test_models_that_cannot_be_swapped(model, error, message):
    with pytest.raises(error, match=message):
        gw_jax.linen.swap_norms(model, ".*", make_gw)


def test_channels_that_are_not_last_are_refused():
    model = nn.Sequential([nn.BatchNorm(axis=1, use_running_average=True)])
    with pytest.raises(ValueError, match=r"layers_0 \(BatchNorm of 8 channels\) has axis=1"):
        gw_jax.linen.swap_norms(model, ".*", make_gw).init(jax.random.key(0), images(channels=8))
    last = nn.Sequential([nn.BatchNorm(axis=3, use_running_average=True)])
    gw_jax.linen.swap_norms(last, ".*", make_gw).init(jax.random.key(0), images(channels=8))


def test_the_warning_of_few_observations_reaches_a_swapped_model():
    model = gw_jax.linen.swap_norms(
        nn.Sequential([nn.LayerNorm()]), ".*", lambda c: gw_jax.linen.GroupWhitening(num_groups=13)
    )
    with pytest.warns(UserWarning, match="2 observations for each of 13 groups"):
        model.init(jax.random.key(0), jnp.ones((3, 26)))
