"""Norms of NNX models are measured where they are, and the models stay as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.analysis import analyze_norms, spectrum
from gw_jax.nn.swap import NORMS
from gw_jax.versions import module_list

IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)


class CNN(nnx.Module):
    """Norms as an attribute, in a list, a dict, a Sequential, shared, and one that is never called."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.list = module_list([gw_jax.GroupWhitening(16, num_groups=8, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)])
        named = {"a": gw_jax.BatchNorm(16, rngs=rngs), "shared": self.list[0]}
        self.of_names = nnx.Dict(named) if hasattr(nnx, "Dict") else named
        self.sequence = nnx.Sequential(nnx.Conv(16, 16, (1, 1), rngs=rngs), nnx.GroupNorm(16, 4, rngs=rngs), nnx.relu)
        self.idle = gw_jax.LayerNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.conv(x))
        x = self.list[1](self.list[0](nnx.relu(x)))
        x = self.of_names["a"](x=self.dropout(x), relu=True)
        x = self.of_names["shared"](self.sequence(x), relu=True)
        return x.mean((1, 2))


def snapshot(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState))))


def recording(cls, calls):
    """A norm of a class that keeps its inputs and outputs, run eagerly."""

    class Recording(cls):
        def __call__(self, *args, **kwargs):
            y = super().__call__(*args, **kwargs)
            calls.append((args[0], y))
            return y

    return Recording


@pytest.mark.filterwarnings("ignore:The model did not call idle")
@pytest.mark.parametrize("train", [True, False])
def test_every_norm_is_found_in_the_order_of_the_calls_and_nothing_changes(train):
    model = CNN(nnx.Rngs(0))
    model.train() if train else model.eval()
    before, classes = snapshot(model), {cls: vars(cls).get("__call__") for cls in NORMS}
    count = int(model.dropout.rngs.count[...])
    found = analyze_norms(model, IMAGES)
    assert list(found) == ["norm", "list/0", "list/1", "of_names/a", "sequence/layers/1", "list/0 (call 2)"]
    assert [f.kind for f in found.values()] == [
        "BatchNorm", "GroupWhitening", "LayerNorm", "BatchNorm", "GroupNorm", "GroupWhitening",
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, snapshot(model), before)
    assert int(model.dropout.rngs.count[...]) == count
    assert {cls: vars(cls).get("__call__") for cls in NORMS} == classes
    assert found["list/0"].before.num_variables == 8
    assert found["norm"].before.num_variables == 16
    jax.tree.map(np.testing.assert_array_equal, snapshot(model), before)


def test_input_and_output_are_those_of_the_layer():
    calls = []
    norm = recording(gw_jax.GroupWhitening, calls)(16, num_groups=4, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.linspace(0.5, 2, 16)
    norm.bias[...] = jnp.linspace(-1, 1, 16)
    model = nnx.Sequential(nnx.Conv(3, 16, (3, 3), rngs=nnx.Rngs(1)), norm)
    model(jnp.asarray(IMAGES))
    ((x, y),) = calls
    (found,) = analyze_norms(model, IMAGES, kinds=gw_jax.GroupWhitening, keep_covariance=True).values()
    for side, values in ((found.before, x), (found.after, y)):
        truth = spectrum(values, num_groups=4, keep_covariance=True)
        np.testing.assert_allclose(side.eigenvalues, truth.eigenvalues, rtol=1e-3)
        np.testing.assert_allclose(side.covariance, truth.covariance, atol=1e-4)
    (bare,) = analyze_norms(model, IMAGES, affine=False).values()
    truth = spectrum((y - norm.bias[...]) / norm.scale[...], num_groups=4)
    np.testing.assert_allclose(bare.after.eigenvalues, truth.eigenvalues, rtol=1e-3)
    assert bare.after.whitening_error.max() < 0.1 < found.after.whitening_error.min()


@pytest.mark.slow
def test_a_relu_inside_a_norm_is_left_out_and_the_network_still_gets_it():
    model = gw_jax.create_model("resnet18", width=8, num_classes=3, norm_options={"num_groups": 4}, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    found = analyze_norms(model, images, "^(stem_norm|stage1/)")
    assert found["stem_norm"].after.whitening_error.max() < 0.01
    # The next layers see what they see without an analysis.
    x = nnx.max_pool(model.stem_norm(model.stem_conv(images), relu=True), (3, 3), (2, 2), ((1, 1), (1, 1)))
    truth = spectrum(model.stage1[0].conv1(x), num_groups=4)
    np.testing.assert_allclose(found["stage1/0/norm1"].before.eigenvalues, truth.eigenvalues, rtol=1e-3)


@pytest.mark.slow
def test_the_pattern_and_the_groups_choose():
    model = CNN(nnx.Rngs(0))
    assert list(analyze_norms(model, IMAGES, "^norm$")) == ["norm"]
    assert list(analyze_norms(model, IMAGES, "of_names/shared")) == ["of_names/shared", "of_names/shared (call 2)"]
    by_channel = analyze_norms(model, IMAGES, "list", num_groups="channels", per="batch")
    assert [f.before.eigenvalues.shape for f in by_channel.values()] == [(1, 16)] * 3
    assert analyze_norms(model, IMAGES, "list/1", num_groups=2)["list/1"].after.eigenvalues.shape == (4, 2)
    assert analyze_norms(model, IMAGES, "list/0", per="batch")["list/0"].after.observations.tolist() == [4 * 64]


@pytest.mark.slow
def test_vectors_are_analysed_by_groups_or_by_batch():
    model = gw_jax.create_model(
        "mlp", norm="gw", width=64, num_classes=10, norm_options={"num_groups": 4}, rngs=nnx.Rngs(0)
    )
    images = np.random.default_rng(0).standard_normal((8, 28, 28, 1)).astype(np.float32)
    assert analyze_norms(model, images)["norms/3"].after.whitening_error.max() < 0.1
    assert analyze_norms(model, images, per="batch")["norms/3"].after.rank.tolist() == [7]
    model = gw_jax.create_model("mlp", norm="bn", num_classes=10, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r'norms/0 \(BatchNorm\).*per="batch"'):
        analyze_norms(model, images)


def test_swapped_norms_are_analysed_as_what_they_are():
    model = nnx.Sequential(nnx.Conv(3, 16, (3, 3), rngs=nnx.Rngs(1)), nnx.BatchNorm(16, rngs=nnx.Rngs(0)))
    gw_jax.swap_norms(model, ".*", lambda c: gw_jax.GroupWhitening(c, num_groups=4, rngs=nnx.Rngs(0)))
    mask = np.arange(8) < 6
    mask = np.broadcast_to(mask[:, None], (4, 8, 8, 1))
    (found,) = analyze_norms(model, IMAGES, call=lambda m, x: m.layers[1](m.layers[0](x), mask=mask)).values()
    assert (found.path, found.kind) == ("layers/1", "GroupWhitening")
    assert found.after.observations.tolist() == [4 * 8 * 6] * 4
    assert found.after.whitening_error.max() < 0.1


class MyNorm(nnx.Module):
    def __call__(self, inputs):
        return inputs / 2


class Restless(CNN):
    def __call__(self, x):
        raise RuntimeError("broken")


def test_other_classes_and_other_calls():
    model = nnx.Sequential(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), MyNorm())
    x = jnp.asarray(IMAGES)
    found = analyze_norms(model, x, kinds=MyNorm)["layers/1"]
    np.testing.assert_allclose(found.before.eigenvalues, 4 * found.after.eigenvalues, rtol=1e-4)
    assert list(analyze_norms(model, x, kinds=MyNorm, call=lambda m, x: m.layers[1](x))) == ["layers/1"]


def test_a_broken_call_leaves_the_classes_as_they_were():
    classes = {cls: vars(cls).get("__call__") for cls in NORMS}
    with pytest.raises(RuntimeError, match="broken"):
        analyze_norms(Restless(nnx.Rngs(0)), IMAGES)
    assert {cls: vars(cls).get("__call__") for cls in NORMS} == classes


class Checkpointed(nnx.Module):
    def __init__(self):
        self.norm = gw_jax.GroupWhitening(4, num_groups=2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return jax.checkpoint(lambda x: self.norm(x))(x)


class Unbatched(nnx.Module):
    def __init__(self):
        self.norm = gw_jax.GroupWhitening(3, num_groups=1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x.reshape(-1, 8, 3))


def explode(model, images):
    model.conv.bias[...] = jnp.full(16, jnp.nan)
    return model(images)


@pytest.mark.parametrize(
    ("make", "images", "options", "error", "text"),
    [
        (CNN, IMAGES, {"pattern": "stage"}, ValueError, "'stage' matches none.*norm, list/0, list/1, of_names/a"),
        (CNN, IMAGES, {"pattern": "["}, ValueError, "is no regular expression"),
        (CNN, IMAGES, {"pattern": "idle"}, ValueError, "did not call idle.*nnx.jit"),
        (lambda rngs: nnx.Linear(3, 4, rngs=rngs), IMAGES, {}, ValueError, r"no layer of the kinds.*\(the model itself\)"),
        (CNN, IMAGES, {"num_groups": 3}, ValueError, r"norm \(BatchNorm\): 16 channels cannot be cut"),
        (CNN, IMAGES, {"num_groups": "all"}, ValueError, "'channels' or None"),
        (CNN, IMAGES[:0], {}, ValueError, r"\(0, 8, 8, 3\).*at least one"),
        (CNN, IMAGES[0], {}, ValueError, r"\(8, 8, 3\).*images\[None\]"),
        (lambda rngs: Unbatched(), IMAGES, {}, ValueError, r"norm \(GroupWhitening\).*batch of 4 images"),
        (CNN, IMAGES, {"call": explode}, ValueError, r"The input of norm \(BatchNorm\) is not finite in 4 of 4 samples"),
        (lambda rngs: Checkpointed(), IMAGES[..., [0, 1, 2, 0]], {}, ValueError, "jax.checkpoint"),
        (lambda rngs: lambda x: x, IMAGES, {}, TypeError, "analyze_linen_norms"),
    ],
)
@pytest.mark.filterwarnings("ignore:The model did not call idle")
def test_what_cannot_be_analysed_is_named(make, images, options, error, text):
    with pytest.raises(error, match=text):
        analyze_norms(make(nnx.Rngs(0)), images, **options)


def test_layers_that_were_not_called_are_named():
    with pytest.warns(UserWarning, match="did not call idle"):
        analyze_norms(CNN(nnx.Rngs(0)), IMAGES)


def test_parameters_of_the_model_are_read_anew():
    model = CNN(nnx.Rngs(0))
    first = analyze_norms(model, IMAGES, "^norm$")["norm"].before.eigenvalues
    model.conv.kernel[...] = 2 * model.conv.kernel[...]
    np.testing.assert_allclose(analyze_norms(model, IMAGES, "^norm$")["norm"].before.eigenvalues, 4 * first, rtol=1e-4)
