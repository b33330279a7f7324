import importlib.util
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
_spec = importlib.util.spec_from_file_location(
    "reference_weights", pathlib.Path(__file__).with_name("reference_weights.py")
)
reference_weights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference_weights)


def shapes_of(name, **options):
    return nnx.eval_shape(lambda: gw_jax.create_model(name, rngs=nnx.Rngs(0), **options))


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


def load_golden_network():
    """The golden ResNet-18 in float64, filled by hand from the reference's keys; every key is used."""
    case = json.loads((GOLDEN / "resnet18_gw.json").read_text())
    state = {key: reference_weights.reproducible_array(key, tuple(shape), case["seed"]) for key, shape in case["entries"]}
    model = gw_jax.create_model("resnet18", norm_options={"num_groups": 64}, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    used = {key for key in state if key.endswith("num_batches_tracked")}

    def fill(variable, key, transform=lambda array: array.reshape(-1)):
        assert variable.shape == transform(state[key]).shape
        variable[...] = jnp.asarray(transform(state[key]))
        used.add(key)

    def conv(layer, key):
        fill(layer.kernel, f"{key}.weight", lambda array: array.transpose(2, 3, 1, 0))

    def norm(layer, key):
        fill(layer.scale, f"{key}.weight")
        fill(layer.bias, f"{key}.bias")
        if isinstance(layer, gw_jax.BatchNorm):
            fill(layer.mean, f"{key}.running_mean")
            fill(layer.var, f"{key}.running_var")

    conv(model.stem_conv, "conv1")
    norm(model.stem_norm, "bn1")
    for number, stage in enumerate((model.stage1, model.stage2, model.stage3, model.stage4), start=1):
        for index, block in enumerate(stage):
            for position in (1, 2):
                conv(getattr(block, f"conv{position}"), f"layer{number}.{index}.conv{position}")
                norm(getattr(block, f"norm{position}"), f"layer{number}.{index}.bn{position}")
            if block.shortcut is not None:
                conv(block.shortcut.conv, f"layer{number}.{index}.downsample.0")
                norm(block.shortcut.norm, f"layer{number}.{index}.downsample.1")
    fill(model.head.kernel, "fc.weight", lambda array: array.T)
    fill(model.head.bias, "fc.bias")
    assert used == set(state)
    return model


@pytest.mark.slow
def test_the_golden_resnet18(float64):
    golden = np.load(GOLDEN / "resnet18_gw.npz")
    model = load_golden_network()

    def images(seed, count):
        array = np.random.default_rng([seed, 7]).standard_normal((count, 3, 224, 224)).astype(np.float32)
        return jnp.asarray(array.transpose(0, 2, 3, 1), jnp.float64)

    def close(result, expected):
        return np.abs(np.asarray(result) - expected).max() <= 1e-8 * np.abs(expected).max()

    model.eval()
    assert close(model(images(0, 2)), golden["eval_logits"])
    model.train()
    assert close(model(images(1, 4)), golden["train_logits"])


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
    options = {"width": 32, "num_classes": 10, "stem": "small", "norm_options": {"num_groups": 8}, "rngs": nnx.Rngs(0)}
    model = gw_jax.create_model(name, dtype=jnp.bfloat16, **options)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))}
    assert dtypes == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    seen = inputs_of(type(model.stage2[0]), monkeypatch)
    model.eval()
    logits = jax.jit(lambda x: model(x))(jnp.ones((2, 16, 16, 3)))
    assert {x.dtype for x in seen} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(("stem", "size", "stage1"), [("imagenet", 64, 16), ("imagenet", 97, 25), ("small", 28, 28)])
def test_resolutions(stem, size, stage1, monkeypatch):
    model = gw_jax.create_model("resnet18", stem=stem, width=8, num_classes=7, norm="none", in_channels=1, rngs=nnx.Rngs(0))
    seen = inputs_of(type(model.stage1[0]), monkeypatch)
    model.eval()
    assert jax.jit(lambda x: model(x))(jnp.ones((3, size, size, 1))).shape == (3, 7)
    assert seen[0].shape == (3, stage1, stage1, 8)
    assert seen[-1].shape == (3, -(-stage1 // 8), -(-stage1 // 8), 64)


def test_initialisation():
    model = gw_jax.create_model("resnet50", num_classes=1000, rngs=nnx.Rngs(0))
    kernel = np.asarray(model.stage3[1].conv2.kernel[...])
    np.testing.assert_allclose(kernel.std(), math.sqrt(2 / (9 * 256)), rtol=0.01)
    bound = 1 / math.sqrt(2048)
    for parameter in (model.head.kernel, model.head.bias):
        values = np.asarray(parameter[...])
        assert 0.99 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / math.sqrt(3), rtol=0.05)
    assert (np.asarray(model.stem_norm.scale[...]) == 1).all()
    assert (np.asarray(model.stem_norm.bias[...]) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5"}, "No network is called 'resnet5'; choose one of resnet18, .* Did you mean 'resnet5"),
        ({"whiten": "B2"}, r"No placement \(whiten\) is called 'B2'; choose one of none, S1, S1-B1"),
        ({"stem": "tiny"}, "No stem is called 'tiny'; choose one of imagenet, small"),
        ({"norm": "batchnorm"}, "No normalisation is called 'batchnorm'"),
        ({"norm_options": {"num_groups": 48}}, "64 channels cannot be cut into num_groups=48"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gw_jax.create_model(**{"name": "resnet18", "rngs": nnx.Rngs(0), **arguments})
