"""The golden data of the detector, which lies beside the checkout, in ``../shared/golden/detection``.

Its README says how the numbers were made and how exact they are. A test that reads a file is skipped where the folder is
missing: it is not part of the repository.
"""

import functools
import json
import pathlib
from collections import OrderedDict

import numpy as np
import pytest

from tests.helpers.reference import reproducible_array

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "shared" / "golden" / "detection"
# Anchors are buffers of a state dict, but no weights.
CELL_ANCHORS = "rpn.anchor_generator.cell_anchors."
# Normalisation of an RGB image, in units of 0 to 255.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def require_folder():
    """Skips the calling test where the golden data is missing."""
    if not FOLDER.is_dir():
        pytest.skip(f"the golden data of the detector is not in {FOLDER}")


@functools.lru_cache(maxsize=8)
def _arrays(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def load(name):
    """The arrays of a file such as ``"ops/nms"``, by name; a dict of its own for every caller."""
    require_folder()
    return dict(_arrays(name))


def part(arrays, prefix):
    """The arrays whose name begins with ``prefix`` and a dot, without it."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}


def keys(config):
    """The content of ``keys_config<config>.json``: "entries" (name, shape, kind, trainable) and parameter counts."""
    require_folder()
    return json.loads((FOLDER / f"keys_config{config}.json").read_text())


def state(config, seed, multipliers=None, overrides=None, prefix=""):
    """The state dict (name -> float32 array, in the reference's order and layout) of one of the nine configs.

    Args:
        config: 1 to 9.
        seed: of the weights.
        multipliers: name -> factor, applied in float64.
        overrides: name -> the array that replaces the tensor.
        prefix: of the names to make, such as "backbone."; the others are left out.
    """
    multipliers, overrides = multipliers or {}, overrides or {}
    entries = keys(config)["entries"]
    assert {*multipliers, *overrides} <= {entry["name"] for entry in entries}
    state = OrderedDict()
    for entry in entries:
        name, shape = entry["name"], tuple(entry["shape"])
        if not name.startswith(prefix):
            continue
        if name.startswith(CELL_ANCHORS):
            value = load("ops/anchors")["cell_anchors"][int(name.removeprefix(CELL_ANCHORS))]
        elif name in overrides:
            value = overrides[name]
        else:
            value = reproducible_array(name, shape, seed, np.float64) * multipliers.get(name, 1.0)
        assert value.shape == shape
        state[name] = value.astype(np.float32)
    return state


def state_of(arrays, config, prefix=""):
    """The state dict to which a file of end_to_end, train_step or backbone_rpn belongs."""
    multipliers = dict(zip(arrays.get("multiplier_keys", ()), arrays.get("multipliers", ()), strict=True))
    return state(config, int(arrays["weight_seed"]), multipliers, part(arrays, "override"), prefix)


def normalised(rgb_uint8):
    """``[h, w, 3]`` float32: the input of the network, not padded."""
    return (rgb_uint8.astype(np.float32) - MEAN) / STD


def on_canvas(image, height, width):
    """``image`` ``[h, w, c]`` at the top left of zeros ``[height, width, c]``."""
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)))


def aligned(size, multiple=32):
    """``(height, width)`` rounded up to a multiple of 32: the ``valid`` area of an image of that size."""
    return tuple(-(-int(side) // multiple) * multiple for side in size)


def unpack(rows, height, width):
    """Masks bool ``[k, height, width]`` of packed rows ``[k, bytes]``."""
    return np.unpackbits(rows, axis=-1)[..., : height * width].reshape(*rows.shape[:-1], height, width).astype(bool)


def nhwc(array):
    """``[n, c, h, w]`` as ``[n, h, w, c]``."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
