"""Detectors of the golden data, and small ones."""

import re

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax.detection.detector import create_detector
from gw_jax.models import Architecture
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.tree import variables

# The arguments of the configs whose numbers are known.
CONFIGS = {
    1: {"backbone": "resnet50", "norm": "frozen_bn"},
    2: {"backbone": "resnet50", "norm": "gn"},
    3: {"backbone": "resnet50", "norm": "gw"},
    6: {"backbone": "resnet50", "norm": "gw", "fpn_norm": "gn", "box_head": "4conv1fc", "box_head_norm": "gw"},
    9: {
        "backbone": "resnext101_32x8d",
        "norm": "gw",
        "fpn_norm": "gw",
        "box_head": "4conv1fc",
        "box_head_norm": "gw",
        "mask_head": True,
        "mask_head_norm": "gw",
    },
}

_NAMES = [
    (r"^backbone\.body\.stem\.", ""),
    (r"^backbone\.body\.", ""),
    (r"^conv1\.", "backbone.stem_conv."),
    (r"^bn1\.", "backbone.stem_norm."),
    (r"^layer", "backbone.stage"),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^rpn\.head\.cls_logits", "rpn_head.logits"),
    (r"^rpn\.head\.bbox_pred", "rpn_head.deltas"),
    (r"^rpn\.head\.conv", "rpn_head.conv"),
    (r"^roi_heads\.box\.feature_extractor\.fc", "box_head.fc"),
    (r"^roi_heads\.box\.predictor\.cls_score", "box_head.logits"),
    (r"^roi_heads\.box\.predictor\.bbox_pred", "box_head.deltas"),
    (r"^roi_heads\.mask\.predictor\.conv5_mask", "mask_head.deconv"),
    (r"^roi_heads\.mask\.predictor\.mask_fcn_logits", "mask_head.logits"),
]


def _path(name):
    """Our path of the reference's entry ``name``."""
    *place, leaf = name.split(".")
    place = ".".join(place) + "."
    for pattern, to in _NAMES:
        place = re.sub(pattern, to, place)
    place = re.sub(
        r"^backbone\.fpn\.fpn_(inner|layer)(\d)\.(?:(\d)\.)?",
        lambda m: f"fpn.{m[1]}.{int(m[2]) - 1}.{'norm' if m[3] == '1' else 'conv'}.",
        place,
    )
    place = re.sub(
        r"^roi_heads\.box\.feature_extractor\.xconvs\.(\d)\.",
        lambda m: f"box_head.convs.{int(m[1]) // 2}.{'norm' if int(m[1]) % 2 else 'conv'}.",
        place,
    )
    place = re.sub(
        r"^roi_heads\.mask\.feature_extractor\.mask_fcn(\d)\.(\d)\.",
        lambda m: f"mask_head.convs.{int(m[1]) - 1}.{'norm' if m[2] == '1' else 'conv'}.",
        place,
    )
    leaf = {"running_mean": "mean", "running_var": "var", "weight": "kernel"}.get(leaf, leaf)
    return place + leaf


def _value(path, value, shape):
    """The reference's ``value`` in the layout of our variable ``path``."""
    if path == "mask_head.deconv.kernel":
        return value.transpose(2, 3, 0, 1)
    if path == "box_head.fc6.kernel":
        return value.reshape(value.shape[0], -1, 7, 7).transpose(2, 3, 1, 0).reshape(shape)
    if path.endswith("kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value.reshape(shape)


def detector_of(config, state, **options):
    """The detector of one of the configs with the weights of ``state``."""
    detector = create_detector(**{**CONFIGS[config], **options}, rngs=AbstractRngs())
    leaves = variables(detector)
    found = {}
    for name, value in state.items():
        if ".cell_anchors." in name:
            continue
        path = _path(name)
        if path not in leaves:
            path = path.removesuffix("kernel") + "scale"
        found[path] = jnp.asarray(_value(path, value, leaves[path].shape))
        assert found[path].shape == leaves[path].shape, name
    assert set(found) == set(leaves)
    graphdef, abstract = nnx.split(detector)
    return nnx.merge(graphdef, nnx.map_state(lambda path, leaf: leaf.replace(found[".".join(map(str, path))]), abstract))


def small(seed=0, **options):
    """A detector that computes in milliseconds, whose norms and biases are not their initial values."""
    options = {
        "backbone": Architecture(True, (1, 2, 1, 1)),
        "width": 8,
        "fpn_features": 16,
        "head_features": 32,
        "num_classes": 6,
        **options,
    }
    options.setdefault("norm_options", {} if options.get("norm") == "frozen_bn" else {"num_groups": 4})
    detector = create_detector(**options, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for name, leaf in sorted(nnx.to_flat_state(nnx.state(detector))):
        value = leaf[...] if hasattr(leaf, "__getitem__") else leaf
        if name[-1] in ("scale", "var"):
            leaf[...] = jnp.asarray(rng.uniform(0.5, 1.5, value.shape), value.dtype)
        elif name[-1] in ("bias", "mean"):
            leaf[...] = jnp.asarray(0.2 * rng.standard_normal(value.shape), value.dtype)
    return detector


def random_image(height, width, seed=0):
    """A normalised image of noise at several scales."""
    rng = np.random.default_rng([seed, height, width])
    image = sum(
        np.kron(rng.standard_normal((-(-height // k), -(-width // k), 3)), np.ones((k, k, 1)))[:height, :width]
        for k in (1, 8, 32)
    )
    return image.astype(np.float32)


def batch(images, height, width):
    """Images in a canvas, with garbage outside their valid areas, and ``valid`` and ``sizes``."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    valid = -(-sizes // 32) * 32
    canvas = np.full((len(images), height, width, 3), np.nan, np.float32)
    for index, image in enumerate(images):
        canvas[index, : valid[index, 0], : valid[index, 1]] = 0
        canvas[index, : sizes[index, 0], : sizes[index, 1]] = image
    return jnp.asarray(canvas), jnp.asarray(valid), jnp.asarray(sizes)


@nnx.jit
def features(detector, images, valid):
    """Pyramid, RPN logits and deltas of images in a canvas."""
    pyramid = detector.pyramid(images, valid)
    return pyramid, *detector.rpn(pyramid, valid)


def crop(features, valid, stride):
    """The valid part of the features ``[h, w, c]`` of an image, and the largest absolute value outside of it."""
    height, width = (-(-int(edge) // stride) for edge in valid)
    outside = np.array(features)
    outside[:height, :width] = 0
    return np.asarray(features)[:height, :width], np.abs(outside).max(initial=0)


def assert_close(found, expected, tolerance, name=""):
    """The largest difference is at most ``tolerance`` times the largest value of ``expected``."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, name
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{name}: {error}"
