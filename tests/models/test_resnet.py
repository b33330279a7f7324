import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.models.reference_names import REFERENCE_RESNETS
from gw_jax.models.resnet import ARCHITECTURES
from gw_jax.nn.initializers import AbstractRngs


def shapes_of(name, **options):
    return gw_jax.create_model(name, rngs=AbstractRngs(), **options)


def logits_shape(model, images):
    """Shape and type of the logits for images of that shape; nothing is computed."""
    graphdef, state = nnx.split(model)
    return jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, jax.ShapeDtypeStruct(images, jnp.float32))


def num_parameters(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def count_layers(model, kind):
    return sum(isinstance(module, kind) for _, module in nnx.iter_graph(model))


@pytest.mark.parametrize("norm", ["gw", "bn"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
    ],
)
def test_parameter_counts_of_the_reference(name, norm, expected):
    assert num_parameters(shapes_of(name, norm=norm)) == expected


@pytest.mark.parametrize(
    ("name", "whiten", "expected"),
    [
        ("resnet18", "S1", 1),
        ("resnet18", "S1-B1", 9),
        ("resnet18", "S1-B2", 9),
        ("resnet18", "S1-B3", 9),
        ("resnet18", "S1-B12", 17),
        ("resnet34", "S1-B2", 17),
        ("resnet50", "S1-B2", 17),
        ("resnet50", "S1-B12", 33),
        ("resnet101", "S1-B2", 34),
        ("resnet152", "S1-B3", 51),
        ("resnext50_32x4d", "all", 53),
        ("resnext50_32x4d", "none", 0),
    ],
)
def test_number_of_whitening_layers(name, whiten, expected):
    model = shapes_of(name, whiten=whiten)
    assert count_layers(model, gw_jax.GroupWhitening) == expected
    assert count_layers(model, gw_jax.BatchNorm) == count_layers(shapes_of(name, norm="bn"), gw_jax.BatchNorm) - expected


@pytest.mark.parametrize(
    ("name", "whiten", "expected"),
    [
        ("resnet18", "S1-B1", (True, False)),
        ("resnet18", "S1-B2", (True, False)),
        ("resnet18", "S1-B3", (False, True)),
        ("resnet50", "S1-B1", (True, False, False)),
        ("resnet50", "S1-B2", (False, True, False)),
        ("resnet50", "S1-B3", (False, False, True)),
        ("resnet50", "S1-B12", (True, True, False)),
    ],
)
def test_where_blocks_whiten(name, whiten, expected):
    model = shapes_of(name, whiten=whiten)
    assert isinstance(model.stem_norm, gw_jax.GroupWhitening)
    for stage in (model.stage1, model.stage2, model.stage3, model.stage4):
        for block in stage:
            norms = [getattr(block, f"norm{i}") for i in range(1, len(expected) + 1)]
            assert tuple(isinstance(norm, gw_jax.GroupWhitening) for norm in norms) == expected
            assert block.shortcut is None or isinstance(block.shortcut.norm, gw_jax.BatchNorm)


def inputs_of(block, monkeypatch):
    """A list that fills with the inputs of all blocks of the class ``block``."""
    seen, original = [], block.__call__

    def call(self, x):
        seen.append(x)
        return original(self, x)

    monkeypatch.setattr(block, "__call__", call)
    return seen


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_bfloat16_activations_over_float32_parameters(name, monkeypatch):
    options = {"width": 32, "num_classes": 10, "stem": "small", "norm_options": {"num_groups": 8}, "rngs": AbstractRngs()}
    model = gw_jax.create_model(name, dtype=jnp.bfloat16, **options)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))}
    assert dtypes == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    seen = inputs_of(type(model.stage2[0]), monkeypatch)
    model.eval()
    logits = logits_shape(model, (2, 16, 16, 3))
    assert {x.dtype for x in seen} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(("stem", "size", "stage1"), [("imagenet", 64, 16), ("imagenet", 97, 25), ("small", 28, 28)])
def test_resolutions(stem, size, stage1, monkeypatch):
    model = gw_jax.create_model(
        "resnet18", stem=stem, width=8, num_classes=7, norm="none", in_channels=1, rngs=AbstractRngs()
    )
    seen = inputs_of(type(model.stage1[0]), monkeypatch)
    model.eval()
    assert logits_shape(model, (3, size, size, 1)).shape == (3, 7)
    assert seen[0].shape == (3, stage1, stage1, 8)
    assert seen[-1].shape == (3, -(-stage1 // 8), -(-stage1 // 8), 64)


@pytest.mark.slow
def test_initialisation():
    model = gw_jax.create_model("resnet18", num_classes=1000, rngs=nnx.Rngs(0))
    kernel = np.asarray(model.stage3[1].conv2.kernel[...])
    np.testing.assert_allclose(kernel.std(), math.sqrt(2 / (9 * 256)), rtol=0.01)
    bound = 1 / math.sqrt(512)
    for parameter in (model.head.kernel, model.head.bias):
        values = np.asarray(parameter[...])
        assert 0.99 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / math.sqrt(3), rtol=0.05)
    assert (np.asarray(model.stem_norm.scale[...]) == 1).all()
    assert (np.asarray(model.stem_norm.bias[...]) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5"}, "name='resnet5' is not known; choose one of resnet18, .* Did you mean 'resnet5"),
        ({"whiten": "B2"}, "whiten='B2' is not known; choose one of none, S1, S1-B1"),
        ({"stem": "tiny"}, "stem='tiny' is not known; choose one of imagenet, small"),
        ({"norm": "batchnorm"}, "norm='batchnorm' is not known"),
        ({"norm_options": {"num_groups": 48}}, "64 channels cannot be cut into num_groups=48"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": 10.0}, "num_classes=10.0 is a float"),
        ({"name": "resnext50_32x4d", "width": 8}, "width=8 leaves no channels for the 32 groups .* give at least 16"),
        ({"replace_stride_with_dilation": (False, False, True)}, "needs bottleneck blocks"),
        ({"name": "resnet50", "replace_stride_with_dilation": (True,)}, "give three booleans"),
        ({"zero_init_residual": True, "whiten": "all", "norm": "none"}, "zero_init_residual .* has none"),
        ({"dropout": 1.5}, "dropout=1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gw_jax.create_model(**{"name": "resnet18", "rngs": nnx.Rngs(0), **arguments})


@pytest.mark.parametrize("name", sorted(REFERENCE_RESNETS))
def test_names_of_the_reference(name):
    ours, whiten = REFERENCE_RESNETS[name]
    alias = shapes_of(name, norm="gn") if name not in ARCHITECTURES else shapes_of(name, norm="gn", whiten=whiten)
    assert nnx.graphdef(alias) == nnx.graphdef(shapes_of(ours, norm="gn", whiten=whiten))


@pytest.mark.parametrize(
    ("whiten", "expected"),
    [(None, (True, False)), ("S1-B1", (True, False)), ("S1-B2", (False, True)), ("none", (False,) * 2)],
)
def test_a_given_placement_wins_over_the_name(whiten, expected):
    # A bottleneck tells S1-B1 from S1-B2.
    model = shapes_of("resnet_whiten_100n50", whiten=whiten)
    block = model.stage1[0]
    assert tuple(isinstance(norm, gw_jax.GroupWhitening) for norm in (block.norm1, block.norm2)) == expected


def test_an_architecture_needs_no_name():
    small = gw_jax.models.Architecture(bottleneck=False, stage_sizes=(1, 1, 1, 1))
    model = shapes_of(small, width=8, num_classes=3, norm="bn")
    assert [len(stage) for stage in (model.stage1, model.stage2, model.stage3, model.stage4)] == [1, 1, 1, 1]
    assert logits_shape(model, (1, 32, 32, 3)).shape == (1, 3)
    with pytest.raises(ValueError, match="does not have depth"):
        shapes_of(small, depth=3)


@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("name", ["resnet18", "mlp", "lenet"])
def test_logits_are_at_least_float32(name, param_dtype):
    options = {"width": 8, "last_norm": True} if name == "resnet18" else {}
    norm = {} if name == "lenet" else {"norm": "bn"}
    model = shapes_of(name, num_classes=3, param_dtype=param_dtype, **norm, **options)
    images = (2, 32, 32, 3) if name == "resnet18" else (2, 28, 28, 1)
    assert logits_shape(model, images).dtype == jnp.float32


def test_shapes_only_are_those_of_the_network():
    options = {"name": "resnet18", "width": 8, "norm": "dbn", "num_classes": 3, "last_norm": True, "dropout": 0.1}
    shapes = gw_jax.create_model(**options, rngs=AbstractRngs())
    traced = nnx.eval_shape(lambda: gw_jax.create_model(**options, rngs=nnx.Rngs(0)))
    assert nnx.graphdef(shapes) == nnx.graphdef(traced)
    for a, b in zip(jax.tree.leaves(nnx.state(shapes)), jax.tree.leaves(nnx.state(traced)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.slow
def test_dilation_keeps_the_resolution(monkeypatch):
    options = {"width": 8, "num_classes": 3, "norm_options": {"num_groups": 4}}
    plain, dilated = (
        shapes_of("resnet50", **options, replace_stride_with_dilation=d) for d in ((False,) * 3, (False, True, True))
    )
    seen = inputs_of(type(plain.stage4[0]), monkeypatch)
    for model in (plain, dilated):
        logits_shape(model, (1, 64, 64, 3))
    assert [x.shape[1] for x in (seen[15], seen[31])] == [2, 8]
    # As in torchvision, the first block of a stage sees its input at the dilation of the stage before.
    convs = [block.conv2 for stage in (dilated.stage3, dilated.stage4) for block in stage]
    assert [conv.kernel_dilation[0] for conv in convs] == [1, 2, 2, 2, 2, 2, 2, 4, 4]
    assert all(conv.strides == (1, 1) for conv in convs)


@pytest.mark.slow
def test_blocks_can_start_as_their_shortcuts():
    model = gw_jax.create_model("resnet18", width=8, num_classes=3, zero_init_residual=True, rngs=nnx.Rngs(0), norm="bn")
    assert not any(block.norm2.scale[...].any() for block in model.stage2)
    assert model.stage2[0].norm1.scale[...].all()
    x = jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 8)), jnp.float32)
    np.testing.assert_array_equal(model.stage1[1](x), x)


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_last_norm_and_dropout_are_there_in_both_families(name):
    model = shapes_of(name, width=16, num_classes=3, last_norm=True, dropout=0.5, norm="gn", norm_options={"num_groups": 8})
    with pytest.raises(ValueError, match="dropout_key"):
        logits_shape(model, (1, 32, 32, 3))
    model.eval()
    seen = []

    class Recorder(nnx.Module):
        def __call__(self, x):
            seen.append(x.shape)
            return x

    model.last_norm = Recorder()
    assert logits_shape(model, (1, 32, 32, 3)).shape == (1, 3)
    assert seen == [(1, 512)]


@pytest.mark.slow
def test_last_norm_and_dropout_work():
    options = {"width": 8, "num_classes": 3, "stem": "small", "last_norm": True, "norm": "bn"}
    x = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 3)), jnp.float32)
    model = gw_jax.create_model("resnet18", **options, dropout=0.5, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, key):
        model = nnx.merge(graphdef, state)
        return model.features(x), model(x, dropout_key=key)

    features, logits = run(nnx.to_pure_dict(state), jax.random.key(0))
    # BatchNorm over the batch of four: mean zero.
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    other = run(nnx.to_pure_dict(state), jax.random.key(1))
    np.testing.assert_array_equal(other[0], features)
    assert not np.array_equal(other[1], logits)
    model.apply_last_norm = False
    graphdef = nnx.graphdef(model)
    without = jax.jit(lambda state: nnx.merge(graphdef, state).features(x))(nnx.to_pure_dict(state))
    assert np.abs(without.mean(0)).max() > 0.01


@pytest.mark.slow
def test_networks_pass_the_relu_to_whitening(monkeypatch):
    options = {"norm": "gw", "num_classes": 3, "width": 16, "norm_options": {"num_groups": 16}, "rngs": nnx.Rngs(0)}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 64)), jnp.float32)
    block = gw_jax.create_model("resnet50", whiten="S1-B12", **options).stage1[1]
    # Without the last ReLU, after the sum; one beside a whitening layer would be missing, too.
    monkeypatch.setattr(nnx, "relu", lambda x: x)
    after = block(x) - x
    monkeypatch.undo()
    first = jax.nn.relu(block.norm1(block.conv1(x)))
    second = jax.nn.relu(block.norm2(block.conv2(first)))
    np.testing.assert_allclose(after, block.norm3(block.conv3(second)), atol=1e-5)
