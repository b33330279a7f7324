"""Residual networks as backbones: no last layer, frozen norms, frozen stages, and images in a canvas."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.models import Architecture
from gw_jax.nn import FrozenBatchNorm
from gw_jax.nn.initializers import AbstractRngs

TINY = {False: Architecture(False, (1, 1, 1, 1)), True: Architecture(True, (1, 1, 1, 1))}


SLOW = pytest.mark.slow  # tests/detection/test_networks.py has these networks in the default run.


def backbone(bottleneck=False, **options):
    options = {"width": 8, "norm_options": {"num_groups": 4}, "other_norm": "frozen_bn", **options}
    options.setdefault("rngs", nnx.Rngs(0))
    return gw_jax.create_model(TINY[bottleneck], num_classes=None, **options)


@nnx.jit
def stages(model, images, valid):
    return model.stages(images, valid)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("norm", ["frozen_bn", "gw", "none"])
@SLOW
def test_a_canvas_changes_no_image(stem, norm):
    model = backbone(stem=stem, norm=norm, norm_options={"num_groups": 4} if norm == "gw" else {})
    image = np.random.default_rng(0).standard_normal((96, 32, 3)).astype(np.float32)
    canvas = np.full((2, 128, 64, 3), np.nan, np.float32)
    canvas[0], canvas[1, :96, :32] = 1, image
    found = stages(model, jnp.asarray(canvas), jnp.array([[128, 64], [96, 32]]))
    for one, expected in zip(found, stages(model, jnp.asarray(image[None]), None), strict=True):
        inside = one[1, : expected.shape[1], : expected.shape[2]]
        np.testing.assert_allclose(inside, expected[0], atol=2e-5 * float(expected.max()))
        assert not one[1, expected.shape[1] :].any()
        assert not one[1, :, expected.shape[2] :].any()
        assert np.isfinite(one).all()


def test_no_last_layer():
    model = backbone(rngs=AbstractRngs())
    assert model.head is None
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert jax.eval_shape(lambda state, x: nnx.merge(graphdef, state).features(x), state, images).shape == (1, 64)
    with pytest.raises(ValueError, match="made with num_classes=None and has no last layer"):
        model(jnp.zeros((1, 64, 64, 3)))
    with pytest.raises(ValueError, match="num_classes=None is a NoneType"):
        gw_jax.create_model("mlp", num_classes=None, rngs=nnx.Rngs(0))


def test_the_other_norm_is_frozen():
    model = backbone(bottleneck=True, batch_norm_options={"epsilon": 0.25}, rngs=AbstractRngs())
    block = model.stage1[0]
    kinds = [type(norm) for norm in (block.norm1, block.norm2, block.norm3, block.shortcut.norm)]
    assert kinds == [FrozenBatchNorm, gw_jax.GroupWhitening, FrozenBatchNorm, FrozenBatchNorm]
    assert block.norm1.epsilon == 0.25
    with pytest.raises(ValueError, match="other_norm='gn' is not known; choose one of bn, frozen_bn"):
        backbone(other_norm="gn")
    with pytest.raises(ValueError, match="does not have other_norm"):
        gw_jax.create_model("lenet", other_norm="frozen_bn", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("frozen", [pytest.param(0, marks=SLOW), pytest.param(1, marks=SLOW), 2])
def test_frozen_stages(frozen):
    model = backbone(norm="frozen_bn", norm_options={}, whiten="all")
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradient(params, x):
        def loss(params):
            maps = nnx.merge(graphdef, params, rest).stages(x, frozen_stages=frozen)
            return sum((features**2).mean() for features in maps)

        return jax.grad(loss)(params)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 64, 3)), jnp.float32)
    for path, leaf in nnx.to_flat_state(gradient(params, x)):
        number = {"stem_conv": 1, "stage1": 1, "stage2": 2, "stage3": 3, "stage4": 4}[path[0]]
        assert np.asarray(leaf[...]).any() == (number > frozen), path


def test_the_arguments_are_remembered(tmp_path):
    options = {"width": 8, "norm": "frozen_bn", "whiten": "all", "other_norm": "frozen_bn"}
    model = gw_jax.create_model("resnet18", num_classes=None, **options, rngs=AbstractRngs())
    model = nnx.merge(*(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), part) for part in nnx.split(model)))
    gw_jax.save_pretrained(tmp_path / "backbone", model)
    saved = json.loads((tmp_path / "backbone" / "config.json").read_text())["model"]
    assert saved["num_classes"] is None
    again = gw_jax.load_pretrained(tmp_path / "backbone")
    assert again.head is None
    assert type(again.stage2[0].norm2) is FrozenBatchNorm
