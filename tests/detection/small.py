"""Detectors of a few channels, which are made and converted in a moment."""

import functools

import jax.numpy as jnp
import numpy as np

from gw_jax.convert.entries import entries
from gw_jax.detection.detector import create_detector
from gw_jax.detection.torch_state import from_torch_state
from gw_jax.models import Architecture
from gw_jax.models.pretrained import write_directory
from gw_jax.models.remembered import abstract_model
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.tree import variables
from tests.helpers.reference import reproducible_array

TINY = Architecture(True, (1, 1, 1, 1))
SIZES = {"width": 8, "fpn_features": 8, "head_features": 16, "num_classes": 3}
GROUPS = {"num_groups": 4}
# One detector per combination of norms and heads, as the nine configurations have them.
KINDS = {
    "frozen, 2fc": {"norm": "frozen_bn"},
    "gn, 2fc": {"norm": "gn", "norm_options": GROUPS},
    "gw, 2fc": {"norm": "gw", "norm_options": GROUPS},
    "frozen, 4conv1fc, mask": {"norm": "frozen_bn", "box_head": "4conv1fc", "mask_head": True},
    "gn, 4conv1fc, mask": {
        "norm": "gn", "norm_options": GROUPS, "fpn_norm": "gn", "box_head": "4conv1fc", "box_head_norm": "gn",
        "mask_head": True, "mask_head_norm": "gn",
    },
    "gw, 4conv1fc, mask": {
        "norm": "gw", "norm_options": GROUPS, "fpn_norm": "gw", "box_head": "4conv1fc", "box_head_norm": "gw",
        "mask_head": True, "mask_head_norm": "gw",
    },
}  # fmt: skip


@functools.cache
def abstract(kind, backbone=TINY, **sizes):
    """A detector with shapes in place of arrays: making random ones takes longer. Do not change it."""
    return create_detector(backbone, **{**SIZES, **KINDS[kind], **sizes}, rngs=AbstractRngs())


def state(kind, backbone=TINY, seed=0, **sizes):
    """A state dict of the reference for such a detector, with the true anchors."""
    return {
        entry.key: entry.constant if entry.path == "" else reproducible_array(entry.key, entry.shape, seed)
        for entry in entries(abstract(kind, backbone, **sizes))
    }


def detector(kind, backbone=TINY, seed=0):
    """A detector with the arrays of :func:`state`."""
    return from_torch_state(state(kind, backbone, seed), norm_options=KINDS[kind].get("norm_options"))


def assert_same_arrays(one, other):
    """Whether two models have the same variables."""
    one, other = variables(one), variables(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=path)


def write_model(directory, name, **arguments):
    """A directory as gw_jax.convert writes it, with an ImageNet model of few channels; its arrays by path."""
    config = {"name": name, "num_classes": 10, "width": 8, **arguments}
    shapes = variables(abstract_model(config, None, jnp.float32))
    arrays = {path: reproducible_array(path, leaf.shape, 0).astype(leaf.dtype) for path, leaf in shapes.items()}
    for path, array in arrays.items():
        if path.endswith(".var"):
            array[...] = abs(array) + 0.5
    write_directory(directory, arrays, config, source=None, training=None)
    return arrays
