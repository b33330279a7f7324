"""Feature maps of the stages, and output strides by dilation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.models.resnet import Architecture
from gw_jax.nn.initializers import AbstractRngs

TINY = Architecture(True, (1, 2, 1, 2))
BASIC = Architecture(False, (1, 1, 1, 1))


def images(size=64, count=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, size, size, 3)), jnp.float32)


def abstract(name, **arguments):
    return gw_jax.create_model(name, num_classes=3, norm="none", rngs=AbstractRngs(), **arguments)


def map_shapes(model, shape):
    graph, state = nnx.split(model)
    maps = jax.eval_shape(lambda state, x: nnx.merge(graph, state).stages(x), state, jax.ShapeDtypeStruct(shape, "float32"))
    return [features.shape for features in maps]


@pytest.mark.parametrize(
    ("architecture", "stem", "size", "edges", "channels"),
    [
        (BASIC, "imagenet", 64, (16, 8, 4, 2), (8, 16, 32, 64)),
        (TINY, "imagenet", 65, (17, 9, 5, 3), (32, 64, 128, 256)),
        (BASIC, "small", 32, (32, 16, 8, 4), (8, 16, 32, 64)),
    ],
)
def test_shapes_and_strides(architecture, stem, size, edges, channels):
    model = abstract(architecture, stem=stem, width=8)
    assert map_shapes(model, (2, size, size, 3)) == [(2, e, e, c) for e, c in zip(edges, channels, strict=True)]
    assert model.strides == ((4, 8, 16, 32) if stem == "imagenet" else (1, 2, 4, 8))


@pytest.mark.parametrize(
    ("stem", "output_stride", "strides"),
    [
        ("imagenet", 32, (4, 8, 16, 32)),
        ("imagenet", 16, (4, 8, 16, 16)),
        ("imagenet", 8, (4, 8, 8, 8)),
        ("imagenet", 4, (4, 4, 4, 4)),
        ("small", 4, (1, 2, 4, 4)),
    ],
)
def test_output_strides(stem, output_stride, strides):
    model = abstract(TINY, stem=stem, width=8, output_stride=output_stride)
    assert model.strides == strides
    assert [shape[1] for shape in map_shapes(model, (1, 64, 64, 3))] == [64 // stride for stride in strides]


@nnx.jit
def stages(model, x):
    return model.stages(x)


def test_logits_are_those_of_the_pooled_last_stage():
    model = gw_jax.create_model(
        BASIC, num_classes=3, width=8, stem="small", norm="gn", norm_options={"num_groups": 4}, rngs=nnx.Rngs(0)
    )
    model.eval()
    maps = stages(model, images(16))
    logits = nnx.jit(lambda model, x: model(x))(model, images(16))
    np.testing.assert_allclose(logits, model.head(maps[-1].mean((1, 2))), atol=1e-5)
    for features in maps:
        assert features.min() == 0  # After the ReLU.


@pytest.mark.slow
def test_a_dilated_network_is_the_strided_one_between_its_positions():
    """Without norms, which see all positions: every second position of a dilated map is a position of the strided one."""
    options = {"num_classes": 3, "width": 8, "norm": "none", "whiten": "all"}
    strided = gw_jax.create_model(TINY, **options, rngs=nnx.Rngs(0))
    expected = stages(strided, images())
    for output_stride in (16, 8):
        dilated = gw_jax.create_model(TINY, **options, output_stride=output_stride, rngs=nnx.Rngs(0))
        for stride, got, want in zip(dilated.strides, stages(dilated, images()), expected, strict=True):
            step = got.shape[1] // want.shape[1]
            assert stride * got.shape[1] == 64
            np.testing.assert_allclose(got[:, ::step, ::step], want, atol=1e-5 * np.abs(want).max())
        assert got.shape[1] == 64 // output_stride


def test_the_output_stride_is_remembered(tmp_path):
    model = abstract("resnet50", width=8, output_stride=16)
    model = nnx.merge(*(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), part) for part in nnx.split(model)))
    gw_jax.save_pretrained(tmp_path / "model", model)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model"]["output_stride"] == 16
    assert gw_jax.load_pretrained(tmp_path / "model").strides == (4, 8, 16, 16)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet50", {"output_stride": 12}, r"output_stride=12; with stem='imagenet' it is 32, or .* 16, 8, 4\."),
        ("resnet50", {"output_stride": 32, "stem": "small"}, r"with stem='small' it is 8, or with dilation one of 4, 2, 1"),
        ("resnet50", {"output_stride": True}, "output_stride=True"),
        ("resnet18", {"output_stride": 16}, "output_stride.* needs bottleneck blocks"),
        (
            "resnet50",
            {"output_stride": 16, "replace_stride_with_dilation": (False, True, True)},
            r"output_stride=16 means replace_stride_with_dilation=\(False, False, True\), but .* leave out one",
        ),
        ("mlp", {"output_stride": 16}, "does not have output_stride"),
    ],
)
def test_contradictions_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        abstract(name, width=64, **arguments)


def test_both_ways_to_dilate_agree():
    flags = {"replace_stride_with_dilation": (False, False, True)}
    both = abstract("resnet50", width=8, output_stride=16, **flags)
    assert nnx.graphdef(both) == nnx.graphdef(abstract("resnet50", width=8, **flags))
    abstract("resnet18", width=8, output_stride=32)
