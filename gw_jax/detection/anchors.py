"""The anchors of the region proposal network: three boxes at every position of each level of the pyramid."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gw_jax.ops.boxes import as_boxes
from gw_jax.ops.checks import require_integer

STRIDES: Mapping[str, int] = MappingProxyType({"P2": 4, "P3": 8, "P4": 16, "P5": 32, "P6": 64})
LEVELS = tuple(STRIDES)
# Heights over widths of the anchors of one position.
RATIOS = (0.5, 1.0, 2.0)
# The side of a square anchor over the stride.
SCALE = 8
# An id is 3 bits of level, 13 of y, 13 of x and 2 of ratio.
_COORDINATE_BITS = 13


def cell_anchors() -> np.ndarray:
    """The anchors of the first position of each level.

    At stride ``s`` and ratio ``r`` the base sides are ``w = round(sqrt(s^2 / r))`` and ``h = round(w r)``, halves rounded
    to even. An anchor has 8 times these sides, in pixels with inclusive ends, around ``(s - 1) / 2``.

    Returns:
        float32 ``[5, 3, 4]``: P2 to P6, ratios 0.5, 1 and 2.

    Source: maskrcnn-benchmark, ``anchor_generator.generate_anchors``.

    Example:
        >>> from gw_jax.detection.anchors import cell_anchors
        >>> cell_anchors()[0].tolist()
        [[-22.0, -10.0, 25.0, 13.0], [-14.0, -14.0, 17.0, 17.0], [-10.0, -22.0, 13.0, 25.0]]
    """
    strides = np.array(list(STRIDES.values()), float)[:, None]
    ratios = np.array(RATIOS)
    width = np.round(np.sqrt(strides**2 / ratios))
    height = np.round(width * ratios)
    centre = (strides - 1) / 2
    half_width, half_height = (SCALE * width - 1) / 2, (SCALE * height - 1) / 2
    boxes = (centre - half_width, centre - half_height, centre + half_width, centre + half_height)
    return np.stack(boxes, -1).astype(np.float32)


def anchors(height: int, width: int, level: str) -> jax.Array:
    """The anchors of one level.

    Those of :func:`cell_anchors`, moved by ``(x s, y s)`` for every position ``(y, x)``; ``s`` is the stride.

    Args:
        height: rows of the feature map.
        width: its columns.
        level: "P2" to "P6".

    Returns:
        float32 ``[height * width * 3, 4]``, by y, then x, then ratio: the order of ``[height, width, 3]`` logits.

    Raises:
        ValueError: ``level`` is not known, or a side is no integer of at least 1.

    Source: maskrcnn-benchmark, ``AnchorGenerator.grid_anchors``.

    Example:
        >>> from gw_jax.detection.anchors import anchors
        >>> anchors(2, 3, "P6").shape
        (18, 4)
    """
    _require_level(level)
    height, width = require_integer("height", height, 1), require_integer("width", width, 1)
    return anchors_at(jnp.arange(height * width * len(RATIOS), dtype=jnp.int32), width, level)


def anchors_at(indices: jax.Array, width: int, level: str) -> jax.Array:
    """``anchors(height, width, level)[indices]``, computed for these alone.

    The 200,000 anchors of P2 would be a constant of 3 MB, which XLA computes when it compiles.
    """
    position, ratio = jnp.divmod(indices, len(RATIOS))
    y, x = jnp.divmod(position, width)
    shift = (STRIDES[level] * jnp.stack((x, y, x, y), -1)).astype(jnp.float32)
    return jnp.asarray(cell_anchors()[_require_level(level)])[ratio] + shift


def anchor_ids(height: int, width: int, level: str) -> jax.Array:
    """Numbers that name the anchors of one level by ``(level, y, x, ratio)``, on whatever canvas.

    Args:
        height: rows of the feature map, up to 8,192.
        width: its columns, up to 8,192.
        level: "P2" to "P6".

    Returns:
        int32 ``[height * width * 3]``, in the order of :func:`anchors`; different for all anchors of all levels.

    Raises:
        ValueError: ``level`` is not known, or a side is no integer from 1 to 8,192.

    Example:
        >>> from gw_jax.detection.anchors import anchor_ids
        >>> anchor_ids(1, 2, "P2").tolist()
        [0, 1, 2, 4, 5, 6]
    """
    index = _require_level(level)
    sides = require_integer("height", height, 1), require_integer("width", width, 1)
    if max(sides) > 1 << _COORDINATE_BITS:
        raise ValueError(f"a feature map of {height} x {width}; anchor_ids allows sides up to {1 << _COORDINATE_BITS}.")
    y = jnp.arange(height, dtype=jnp.int32)[:, None, None]
    x = jnp.arange(width, dtype=jnp.int32)[None, :, None]
    ratio = jnp.arange(len(RATIOS), dtype=jnp.int32)[None, None, :]
    position = ((index << _COORDINATE_BITS | y) << _COORDINATE_BITS) | x
    return (position << 2 | ratio).reshape(-1)


def visible(boxes: ArrayLike, size: ArrayLike) -> jax.Array:
    """The boxes that lie inside an image: ``x1 >= 0``, ``y1 >= 0``, ``x2 < width`` and ``y2 < height``.

    Only such anchors have a label in the loss of the region proposal network; proposals come from all of them.

    Args:
        boxes: ``[k, 4]``, floating point.
        size: ``[2]``, the true (height, width) of the image, before padding.

    Returns:
        bool ``[k]``.

    Raises:
        TypeError: ``boxes`` is not floating point.
        ValueError: the shapes do not fit.

    Source: maskrcnn-benchmark, ``AnchorGenerator.add_visibility_to``, a straddle threshold of 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection.anchors import visible
        >>> visible(jnp.array([[0.0, 0.0, 19.0, 9.0], [0.0, 0.0, 20.0, 9.0]]), (10, 20)).tolist()
        [True, False]
    """
    boxes, size = as_boxes(boxes, "visible", ndim=2), jnp.asarray(size)
    if size.shape != (2,):
        raise ValueError(
            f"visible got a size of shape {size.shape}; it requires (height, width). Use jax.vmap for a batch."
        )
    height, width = size.astype(boxes.dtype)
    return (boxes[:, 0] >= 0) & (boxes[:, 1] >= 0) & (boxes[:, 2] < width) & (boxes[:, 3] < height)


def _require_level(level: str) -> int:
    if level not in LEVELS:
        raise ValueError(f"level={level!r}; it must be one of {', '.join(LEVELS)}.")
    return LEVELS.index(level)
