"""The resize of an image with its objects, and its mirror image; byte for byte as the reference does it with Pillow."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gw_jax.detection.canvas import ALIGNMENT

Polygons = list[list[np.ndarray]]


def target_size(height: int, width: int, min_side: int = 800, max_side: int = 1333) -> tuple[int, int]:
    """Height and width of an image after the resize.

    The shorter side becomes ``s = min_side``, or ``s = round(max_side * shorter / longer)`` where the longer one would
    exceed ``max_side``. The longer side becomes ``int(s * longer / shorter)``. An image whose shorter side is ``s`` already
    keeps its size.

    Rounding may make the longer side a little longer than ``max_side``. It never exceeds the next multiple of 32, nor is a
    side less than 1: so every image fits into a canvas for ``max_side``. In the reference neither bound exists. They matter
    where one side is 20 times the other and more, as in no image of COCO.

    Args:
        height: of the image.
        width: of the image.
        min_side: length of the shorter side.
        max_side: largest length of the longer side.

    Source: ``Resize`` of the reference.

    Example:
        >>> from gw_jax.detection.data.resize import target_size
        >>> target_size(480, 640), target_size(200, 640), target_size(4000, 1)
        ((800, 1066), (417, 1334), (1333, 1))
    """
    shorter, longer = min(height, width), max(height, width)
    side = min_side
    if longer / shorter * side > max_side:
        side = round(max_side * shorter / longer)
    if side < 1:
        side, other = 1, max_side
    elif side == shorter:
        other = longer
    else:
        other = int(side * longer / shorter)
    other = min(other, -(-max(max_side, side) // ALIGNMENT) * ALIGNMENT)
    return (side, other) if height <= width else (other, side)


def target_sizes(sizes: np.ndarray, min_side: int = 800, max_side: int = 1333) -> np.ndarray:
    """:func:`target_size` of each of ``sizes``, heights and widths: int32 ``[n, 2]``."""
    distinct, inverse = np.unique(np.asarray(sizes, np.int32).reshape(-1, 2), axis=0, return_inverse=True)
    resized = [target_size(height, width, min_side, max_side) for height, width in distinct.tolist()]
    return np.array(resized, np.int32).reshape(-1, 2)[inverse.reshape(-1)]


def resized_pixels(picture: Any, size: tuple[int, int], *, mirrored: bool = False) -> np.ndarray:
    """The pixels of a Pillow image in RGB, resized to ``size`` (height, width): uint8 ``[height, width, 3]``.

    Pillow's bilinear filter, whose support grows with the factor by which an image shrinks. With ``mirrored``, the result
    is mirrored from left to right.
    """
    from PIL import Image

    height, width = size
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if mirrored:
        # NumPy copies reversed rows pixel by pixel, in ten times as long.
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture, np.uint8).reshape(height, width, 3)


def scale_objects(
    boxes: np.ndarray, polygons: Sequence[Sequence[np.ndarray]], old: tuple[int, int], new: tuple[int, int]
) -> tuple[np.ndarray, Polygons]:
    """Boxes and polygons of an image of size ``old`` (height, width), for the same of size ``new``.

    All coordinates are multiplied by the ratio of the widths or of the heights, the inclusive ends of boxes, too.

    Args:
        boxes: ``[k, 4]``, x1 y1 x2 y2.
        polygons: for each box its parts, x y x y ... each.
        old: size before.
        new: size after.

    Source: ``BoxList.resize`` and ``SegmentationMask.resize`` of the reference.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection.data.resize import scale_objects
        >>> scale_objects(np.array([[10.0, 20.0, 30.0, 40.0]]), [[]], (100, 100), (200, 150))[0].tolist()
        [[15.0, 40.0, 45.0, 80.0]]
    """
    (old_height, old_width), (new_height, new_width) = old, new
    ratio = np.array([new_width / old_width, new_height / old_height])
    scaled = [[(part.reshape(-1, 2) * ratio).reshape(-1) for part in parts] for parts in polygons]
    return (boxes.reshape(-1, 2, 2) * ratio).reshape(-1, 4), scaled


def flip_objects(boxes: np.ndarray, polygons: Sequence[Sequence[np.ndarray]], width: int) -> tuple[np.ndarray, Polygons]:
    """Boxes and polygons of the mirror image of an image ``width`` pixels wide: x becomes ``width - x - 1``.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection.data.resize import flip_objects
        >>> flip_objects(np.array([[0.0, 20.0, 30.0, 40.0]]), [[]], 100)[0].tolist()
        [[69.0, 20.0, 99.0, 40.0]]
    """
    x1, y1, x2, y2 = boxes.T
    flipped = []
    for parts in polygons:
        points = [part.reshape(-1, 2) for part in parts]
        flipped.append([np.stack([width - p[:, 0] - 1, p[:, 1]], 1).reshape(-1) for p in points])
    return np.stack([width - x2 - 1, y1, width - x1 - 1, y2], 1), flipped
