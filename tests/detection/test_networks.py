"""The networks of the detector: structure, initial values, masks, gradients, bad input. Small ones, but for the counts."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gw_jax.detection.detector import create_detector
from gw_jax.detection.layers import Deconv2x2, Types
from gw_jax.detection.losses import detector_losses
from gw_jax.detection.targets import pad_targets
from gw_jax.models import Architecture
from gw_jax.nn import BatchNorm, FrozenBatchNorm, GroupNorm, GroupWhitening
from gw_jax.nn.initializers import AbstractRngs
from tests.detection import golden
from tests.detection.detectors import CONFIGS, assert_close, batch, crop, features, random_image, small

STRIDES = {"C2": 4, "C3": 8, "C4": 16, "C5": 32, "P2": 4, "P3": 8, "P4": 16, "P5": 32, "P6": 64}
pytestmark = pytest.mark.usefixtures("quick")


def count(detector, kind):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(detector, kind)))


def norms(module):
    kinds = (BatchNorm, FrozenBatchNorm, GroupNorm, GroupWhitening)
    return [type(node).__name__ for _, node in nnx.iter_graph(module) if isinstance(node, kinds)]


@pytest.mark.parametrize("config", CONFIGS)
def test_parameter_counts_of_the_reference(config):
    detector = create_detector(**CONFIGS[config], rngs=AbstractRngs())
    assert count(detector, nnx.Param) == golden.keys(config)["parameters"]
    frozen = sum(
        count(module, nnx.Param)
        for module in (detector.backbone.stem_conv, detector.backbone.stem_norm, detector.backbone.stage1)
    )
    assert count(detector, nnx.Param) - frozen == golden.keys(config)["trainable_parameters"]


def test_where_the_norms_are():
    detector = create_detector("resnet50", fpn_norm="gn", box_head="4conv1fc", box_head_norm="gw", rngs=AbstractRngs())
    backbone = norms(detector.backbone)
    assert backbone.count("GroupWhitening") == 17
    assert backbone.count("FrozenBatchNorm") == 53 - 17
    assert norms(detector.fpn) == ["GroupNorm"] * 8
    assert norms(detector.box_head) == ["GroupWhitening"] * 4
    assert {layer.norm.num_groups for layer in detector.box_head.convs} == {64}
    assert detector.box_head.fc7 is None
    assert detector.box_head.convs[0].conv.bias is None
    for name, kind in (("gn", "GroupNorm"), ("bn", "BatchNorm"), ("frozen_bn", "FrozenBatchNorm")):
        assert norms(create_detector("resnet50", norm=name, frozen_stages=0, rngs=AbstractRngs())) == [kind] * 53


def test_norm_options_are_those_of_the_whole_detector():
    options = {"norm": "gw", "norm_options": {"num_iterations": 3}, "frozen_bn_epsilon": 1e-5}
    detector = create_detector(
        "resnet50", **options, fpn_norm="gn", box_head="4conv1fc", box_head_norm="gw", rngs=AbstractRngs()
    )
    for part in (detector.backbone.stem_norm, detector.box_head.convs[3].norm):
        assert (part.num_iterations, part.num_groups) == (3, 64)
    assert detector.fpn.inner[0].norm.num_groups == 32
    assert detector.backbone.stage1[0].norm1.epsilon == 1e-5


def test_arguments_make_the_same_detector_again():
    detector = small(mask_head=True, conv_relu="each", box_head="4conv1fc")
    arguments = json.loads(json.dumps(detector.arguments))
    again = create_detector(**arguments, rngs=AbstractRngs())
    assert nnx.graphdef(again) == nnx.graphdef(detector)
    assert again.arguments == {**detector.arguments, "backbone": again.arguments["backbone"]}


@pytest.mark.slow  # One program per shape.
def test_initial_values():
    options = {"width": 32, "fpn_features": 64, "head_features": 64, "norm": "frozen_bn", "box_head": "4conv1fc"}

    @nnx.jit
    def create():
        return create_detector(Architecture(False, (1, 1, 1, 1)), **options, mask_head=True, rngs=nnx.Rngs(0))

    detector = create()

    def uniform(kernel):
        bound = math.sqrt(3 / math.prod(kernel.shape[:-1]))
        values = np.asarray(kernel[...])
        assert 0.98 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / math.sqrt(3), rtol=0.03)

    def normal(kernel, deviation):
        np.testing.assert_allclose(np.asarray(kernel[...]).std(), deviation, rtol=0.06)

    uniform(detector.backbone.stage3[0].conv2.kernel)
    uniform(detector.fpn.inner[3].conv.kernel)
    uniform(detector.fpn.layer[0].conv.kernel)
    uniform(detector.box_head.fc6.kernel)
    for layer in (detector.rpn_head.conv, detector.box_head.convs[1].conv, detector.box_head.logits):
        normal(layer.kernel, 0.01)
    normal(detector.box_head.deltas.kernel, 0.001)
    normal(detector.mask_head.convs[0].conv.kernel, math.sqrt(2 / (9 * 64)))
    normal(detector.mask_head.deconv.kernel, math.sqrt(2 / (4 * 64)))
    normal(detector.mask_head.logits.kernel, math.sqrt(2 / 81))
    for path, leaf in nnx.to_flat_state(nnx.state(detector)):
        if path[-1] == "bias":
            assert not np.asarray(leaf[...]).any(), path


SLOW = pytest.mark.slow  # The same programs with other norms and canvases.
BASIC, BOTTLENECK = (Architecture(bottleneck, (1, 1, 1, 1)) for bottleneck in (False, True))


@pytest.mark.parametrize(
    ("backbone", "norm", "fpn_norm", "canvas_size"),
    [
        (BASIC, "gw", "none", (128, 192)),  # Group whitening, frozen norms, and biases.
        pytest.param(BASIC, "gn", "gn", (192, 160), marks=SLOW),
        pytest.param(BOTTLENECK, "gw", "gw", (128, 192), marks=SLOW),
        pytest.param(BOTTLENECK, "frozen_bn", "none", (192, 160), marks=SLOW),
    ],
)
def test_canvas_and_batch_change_no_features(backbone, norm, fpn_norm, canvas_size):
    """An odd number of rows at P5, an image of one row there, NaN outside."""
    detector = small(backbone=backbone, norm=norm, fpn_norm=fpn_norm, fpn_features=32)
    images = [random_image(90, 130), random_image(32, 60)]
    canvas, valid, _ = batch(images, *canvas_size)
    together = features(detector, canvas, valid)
    for index in (0, 1) if norm != "gw" else (0,):
        alone = features(detector, *batch(images[index : index + 1], *golden.aligned(images[index].shape[:2]))[:2])
        for found_of, expected_of in zip(together, alone, strict=True):
            for level, expected in expected_of.items():
                found, outside = crop(found_of[level][index], valid[index], STRIDES[level])
                assert outside == 0, level
                assert_close(found, expected[0], 2e-5, level)


def test_padding_enters_no_statistics_of_the_batch():
    detector = small(norm="bn", frozen_stages=0)
    detector.train()
    images = [random_image(64, 96), random_image(60, 70)]
    found = []
    for height, width in ((64, 96), (96, 128)):
        graphdef, state = nnx.split(detector)

        @jax.jit
        def means(state, canvas, valid, graphdef=graphdef):
            model = nnx.merge(graphdef, state)
            model.pyramid(jnp.asarray(canvas), valid)
            return model.backbone.stage3[0].norm2.mean[...], model.backbone.stem_norm.var[...]

        found.append(means(state, *batch(images, height, width)[:2]))
    assert np.abs(found[0][0]).max() > 0.01
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@SLOW
def test_without_masks_the_canvas_shows():
    """The counterpart of the test above: the masks are what makes it pass."""
    detector, image = small(norm="frozen_bn"), random_image(64, 64)
    alone, _, _ = features(detector, *batch([image], 64, 64)[:2])
    padded = golden.on_canvas(image, 96, 96)[None]
    naive, _, _ = features(detector, jnp.asarray(padded), jnp.array([[96, 96]]))
    difference = np.abs(naive["P2"][:, :16, :16] - alone["P2"]).max() / np.abs(alone["P2"]).max()
    assert difference > 0.05


@pytest.mark.parametrize(
    ("options", "frozen_parts"),
    [
        ({"norm": "frozen_bn"}, {"stem_conv", "stem_norm", "stage1"}),
        pytest.param({"norm": "gw"}, {"stem_conv", "stem_norm", "stage1"}, marks=SLOW),
        pytest.param({"norm": "gw", "frozen_stages": 0}, set(), marks=SLOW),
        pytest.param({"norm": "frozen_bn", "frozen_stages": 2}, {"stem_conv", "stem_norm", "stage1", "stage2"}, marks=SLOW),
    ],
)
def test_first_stages_are_frozen_and_gradients_are_finite(options, frozen_parts):
    detector = small(**options)
    graphdef, parameters, rest = nnx.split(detector, nnx.Param, ...)
    canvas, valid, _ = batch([random_image(64, 96), random_image(32, 32)], 96, 96)

    @jax.jit
    def gradient(parameters):
        def loss(parameters):
            model = nnx.merge(graphdef, parameters, rest)
            pyramid = model.pyramid(canvas, valid)
            logits, deltas = model.rpn(pyramid, valid)
            return sum((x**2).mean() for x in jax.tree.leaves((logits, deltas, pyramid)))

        return jax.grad(loss)(parameters)

    for path, leaf in nnx.to_flat_state(gradient(parameters)):
        values = np.asarray(leaf[...])
        assert np.isfinite(values).all(), path
        frozen = path[0] == "backbone" and path[1] in frozen_parts
        used = path[0] in ("backbone", "fpn", "rpn_head")
        assert values.any() == (used and not frozen), path


def test_bfloat16_activations_have_float32_predictions():
    detector = small(dtype=jnp.bfloat16)
    canvas, valid, _ = batch([random_image(64, 64)], 64, 64)
    pyramid, logits, deltas = jax.eval_shape(features, detector, canvas, valid)
    assert {leaf.dtype for leaf in pyramid.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in (*logits.values(), *deltas.values())} == {jnp.dtype(jnp.float32)}


def test_the_transposed_convolution_spreads_every_input():
    layer = Deconv2x2(3, 2, Types(None, jnp.float32, nnx.Rngs(0)))
    layer.bias[...] = jnp.array([0.5, -1.0])
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 3)).astype(np.float32)
    expected = np.tile([0.5, -1.0], (2, 6, 8, 1))
    for i, j, a, b in np.ndindex(3, 4, 2, 2):
        expected[:, 2 * i + a, 2 * j + b] += x[:, i, j] @ np.asarray(layer.kernel[...][a, b])
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet5"}, "backbone='resnet5' is not known; choose one of resnet18, .* Did you mean 'resnet5"),
        ({"backbone": "lenet"}, "backbone='lenet' is not known"),
        ({"backbone": {"bottleneck": True, "groups": 2}}, "is no Architecture"),
        ({"norm": "in"}, "norm='in' is not known; choose one of gw, gn, bn, frozen_bn"),
        ({"norm": "bn"}, "norm='bn' with frozen_stages=1: .* Give frozen_stages=0, or norm='frozen_bn'"),
        ({"fpn_norm": "GN"}, "fpn_norm='GN' is not known; choose one of none, gw, gn"),
        ({"box_head": "3fc"}, "box_head='3fc' is not known; choose one of 2fc, 4conv1fc"),
        ({"box_head_norm": "gw"}, "box_head_norm='gw' with box_head='2fc', which has no convolutions"),
        ({"mask_head_norm": "gw"}, "mask_head_norm='gw' without a mask head"),
        ({"conv_relu": "first"}, "conv_relu='first' is not known; choose one of last, each"),
        ({"frozen_stages": -1}, "frozen_stages=-1; it must be 0 or more"),
        ({"frozen_stages": 5}, "frozen_stages=5; a backbone has 4 stages"),
        ({"num_classes": 1}, "num_classes=1; it must be 2 or more"),
        ({"stem": "small"}, "stem='small'; only the stem 'imagenet'"),
        ({"frozen_bn_epsilon": -1.0}, "epsilon=-1.0 .frozen_bn_epsilon.; epsilon must be finite"),
        ({"norm_options": {"groups": 2}}, r"'gw' has no option \['groups'\]"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_detector(**{"backbone": "resnet18", **options}, rngs=AbstractRngs())


@pytest.mark.parametrize(
    ("canvas", "valid", "message"),
    [
        ((1, 60, 64, 3), [[60, 64]], "The canvas is 60x64; its sides must be multiples of 32.* to 64x64"),
        ((64, 64, 3), [[64, 64]], r"images have shape \(64, 64, 3\); give \[n, height, width, 3\]"),
        (
            (2, 64, 64, 3),
            [[64, 64]],
            r"valid is of type int32 and shape \(1, 2\) for 2 images; give integers of shape \(2, 2\)",
        ),
        ((1, 64, 64, 3), [[64.0, 64.0]], "valid is of type float32"),
        ((1, 64, 64, 3), [[96, 64]], "Image 0 has the valid area 96x64 in a canvas of 64x64"),
        ((1, 64, 64, 3), [[64, 50]], "Image 0 has the valid area 64x50 .* rounded up to multiples of 32"),
        ((1, 64, 64, 3), [[0, 64]], "Image 0 has the valid area 0x64"),
    ],
)
def test_images_that_do_not_fit_are_named(canvas, valid, message):
    with pytest.raises(ValueError, match=message):
        small().pyramid(jnp.zeros(canvas), jnp.asarray(valid))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[65, 64]], "Image 0 is 65x64 pixels and has the valid area 64x64; valid is 96x64 then"),
        ([[20, 64]], "Image 0 is 20x64 pixels and has the valid area 64x64; valid is 32x64 then"),
        ([[64]], r"sizes is of type int32 and shape \(1, 1\)"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        small().detect(jnp.zeros((1, 64, 64, 3)), jnp.array([[64, 64]]), jnp.asarray(sizes))
    targets = pad_targets([[]], [[]], max_objects=1)
    arguments = jnp.zeros((1, 64, 64, 3)), jnp.array([[64, 64]]), jnp.asarray(sizes), targets, jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        detector_losses(small(), *arguments)


def test_bytes_are_refused():
    with pytest.raises(TypeError, match="the detector got an array of type uint8"):
        small().pyramid(jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.array([[64, 64]]))


def test_arguments_of_the_heads_are_checked():
    detector = small()
    pyramid = {level: jnp.zeros((1, 64 // stride or 1, 64 // stride or 1, 16)) for level, stride in STRIDES.items()}
    valid = jnp.array([[64, 64]])
    with pytest.raises(ValueError, match=r"boxes have shape \(2, 4\) for 1 images; give \[1, k, 4\]"):
        detector.classify(pyramid, valid, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="has no mask head"):
        detector.mask_logits(pyramid, valid, jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), int))
    with pytest.raises(ValueError, match=r"labels have shape \(2,\) for boxes of shape \(1, 2, 4\); give \(1, 2\)"):
        small(mask_head=True).mask_logits(pyramid, valid, jnp.zeros((1, 2, 4)), jnp.zeros((2,), int))
    with pytest.raises(ValueError, match="The pyramid has no P6"):
        detector.rpn({level: x for level, x in pyramid.items() if level != "P6"}, valid)


def test_lists_are_refused_by_name():
    images, valid = np.zeros((1, 64, 64, 3), np.float32), np.array([[64, 64]])
    with pytest.raises(ValueError, match=r"valid is a list; give an array, integers of shape \(1, 2\)"):
        small().pyramid(images, valid.tolist())
    with pytest.raises(ValueError, match=r"images is a list; give an array, \[n, height, width, 3\]"):
        small().detect(images.tolist(), valid, valid)


@pytest.mark.parametrize("norm", ["frozen_bn", "gw"])
def test_no_boxes_have_no_predictions(norm):
    head_norm = {"box_head_norm": "gw", "mask_head_norm": "gw", "box_head": "4conv1fc"} if norm == "gw" else {}
    detector = small(norm=norm, mask_head=True, **head_norm)
    pyramid = {level: jnp.zeros((2, 64 // stride or 1, 64 // stride or 1, 16)) for level, stride in STRIDES.items()}
    valid, boxes = np.array([[64, 64], [32, 64]]), np.zeros((2, 0, 4), np.float32)

    def predictions(pyramid):
        masks = detector.mask_logits(pyramid, valid, boxes, np.zeros((2, 0), np.int32))
        found = detector.detect_in(pyramid, valid, valid, boxes, np.zeros((2, 0), bool))
        return detector.classify(pyramid, valid, boxes), masks, found

    (logits, deltas), masks, found = jax.jit(predictions)(pyramid)
    assert (logits.shape, deltas.shape, masks.shape) == ((2, 0, 6), (2, 0, 24), (2, 0, 28, 28))
    assert found.masks.shape == (2, 100, 28, 28)
    assert not any(np.any(array) for array in found)


def test_a_backbone_has_no_logits():
    with pytest.raises(ValueError, match="made with num_classes=None and has no last layer"):
        small().backbone(jnp.zeros((1, 64, 64, 3)))
