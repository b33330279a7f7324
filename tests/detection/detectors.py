"""Detectors of the golden data, and small ones."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax.detection.detector import create_detector
from gw_jax.detection.torch_state import from_torch_state
from gw_jax.models import Architecture
from gw_jax.nn.initializers import AbstractRngs
from tests.detection import golden

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


def of_file(arrays, config):
    """The detector of one of the configs with the weights to which the arrays of a golden file belong."""
    detector = from_torch_state(golden.state_of(arrays, config))
    assert {key: detector.arguments[key] for key in CONFIGS[config]} == CONFIGS[config]
    return detector


def small(seed=0, **options):
    """A detector that computes in milliseconds; no scale, bias or statistic has its initial value."""
    options = {
        "backbone": Architecture(False, (1, 1, 1, 1)),
        "width": 8,
        "fpn_features": 16,
        "head_features": 32,
        "num_classes": 6,
        **options,
    }
    kind = options.get("norm", "gw")
    options.setdefault("norm_options", {} if kind in ("bn", "frozen_bn") else {"num_groups": 4})
    # NumPy, since JAX would compile an initialisation for every shape.
    graphdef, state = nnx.split(create_detector(**options, rngs=AbstractRngs()))
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if path[-1] in ("scale", "var"):
            array = rng.uniform(0.5, 1.5, leaf.shape)
        elif path[-1] in ("bias", "mean"):
            array = 0.2 * rng.standard_normal(leaf.shape)
        else:
            array = rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if path[-2] == "deltas" or path[:2] == ("fpn", "inner"):
            array *= 0.1  # Boxes some pixels larger or smaller, and logits of some units.
        if path == ("box_head", "logits", "bias"):
            array[0] = 11  # Some regions are background.
        return leaf.replace(jnp.asarray(array, leaf.dtype))

    return nnx.merge(graphdef, nnx.map_state(value, state))


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


def matches(boxes, labels, expected_boxes, expected_labels):
    """For every expected box the index of the closest one of its label, and the largest distance of a coordinate."""
    distance = np.abs(np.asarray(expected_boxes)[:, None] - np.asarray(boxes)[None]).max(-1)
    distance = np.where(np.asarray(expected_labels)[:, None] == np.asarray(labels)[None], distance, np.inf)
    return distance.argmin(1), distance.min(1)


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
