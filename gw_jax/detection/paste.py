"""Masks of detections in the image, on the host."""

from typing import Any, NamedTuple

import numpy as np

from gw_jax.ops.checks import require_integer

# Of zeros around the mask, so that its border can be interpolated.
PADDING = 1
_PIXELS_AT_A_TIME = 1 << 20


def paste_mask(probability: Any, box: Any, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """Resize a mask to its box and place it in the image.

    The mask is padded by a border of zeros, and the box, with sides ``x2 - x1`` and ``y2 - y1``, grows by as much about its
    centre: by 30 / 28 for a mask of 28 x 28. Its corners are truncated to integers. The padded mask is resized to
    ``x2 - x1 + 1`` columns and ``y2 - y1 + 1`` rows by bilinear interpolation between the centres of pixels, and a pixel is
    set where the result exceeds ``threshold``. Only the part inside of the image is computed, in float32.

    Args:
        probability: ``[m, m]``, such as 28 x 28.
        box: x1 y1 x2 y2 in pixels of the image; it may be partly or wholly outside.
        size: (height, width) of the image.
        threshold: of the probability, 0 to 1.

    Returns:
        bool ``[height, width]``.

    Raises:
        ValueError: the mask is not square, the box is not finite, the size is not two positive integers, or the threshold
            is not between 0 and 1.

    Source: ``Masker`` of the reference.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection.ops import paste_mask
        >>> paste_mask(np.ones((28, 28)), [2.0, 1.0, 4.0, 2.0], (4, 6)).astype(int).tolist()
        [[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    """
    region, rows, columns = paste_region(probability, box, size, threshold)
    mask = np.zeros(tuple(map(int, size)), bool)
    mask[rows, columns] = region
    return mask


def paste_region(
    probability: Any, box: Any, size: tuple[int, int], threshold: float = 0.5
) -> tuple[np.ndarray, slice, slice]:
    """The part of :func:`paste_mask` inside of the grown box, and its rows and columns in the image; all else is False.

    Raises:
        ValueError: as for :func:`paste_mask`.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"paste_mask got threshold={threshold}; a probability is needed, 0 to 1.")
    mask, rows, columns = _taps(probability, box, size)
    count, width = len(rows.first), max(len(columns.first), 1)
    region = np.empty((count, len(columns.first)), bool)
    # Some rows at a time: the probabilities of a photograph take hundreds of megabytes.
    step = max(_PIXELS_AT_A_TIME // width, 1)
    for start in range(0, count, step):
        part = slice(start, start + step)
        region[part] = _interpolated(mask, rows, part, columns) > np.float32(threshold)
    return region, rows.inside, columns.inside


class _Axis(NamedTuple):
    """Of each pixel of an axis inside of the image the two pixels of the mask next to it, and the weight of the second."""

    inside: slice
    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray


def _taps(probability: Any, box: Any, size: tuple[int, int]) -> tuple[np.ndarray, _Axis, _Axis]:
    """The padded mask, and how rows and columns are interpolated from it."""
    mask, corners = np.asarray(probability, np.float32), np.asarray(box, np.float32)
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1] or mask.size == 0:
        raise ValueError(f"paste_mask got a mask of shape {mask.shape}; a square one is needed, such as (28, 28).")
    if corners.shape != (4,) or not np.isfinite(corners).all():
        raise ValueError(f"paste_mask got the box {corners.tolist()}; four finite numbers x1 y1 x2 y2 are needed.")
    if len(size) != 2:
        raise ValueError(f"paste_mask got size={tuple(size)}; (height, width) of the image is needed.")
    height, width = (require_integer(name, side, 1) for name, side in zip(("height", "width"), size, strict=True))
    mask = np.pad(mask, PADDING)
    growth = np.float32(len(mask) / (len(mask) - 2 * PADDING))
    middle, half = (corners[2:] + corners[:2]) * np.float32(0.5), (corners[2:] - corners[:2]) * np.float32(0.5) * growth
    # Beyond, int32 would overflow; the part inside of the image is the same to rounding.
    low, high = (np.trunc(np.clip(corner, -1e9, 1e9)).astype(np.int64) for corner in (middle - half, middle + half))
    return mask, _axis(low[1], high[1], height, len(mask)), _axis(low[0], high[0], width, len(mask))


def _interpolated(mask: np.ndarray, rows: _Axis, part: slice, columns: _Axis) -> np.ndarray:
    """The resized mask in ``part`` of the rows."""
    (_, left, right, across), down = columns, rows.weight[part, None]
    above, below = mask[rows.first[part]], mask[rows.second[part]]
    above = above[:, left] * (1 - across) + above[:, right] * across
    below = below[:, left] * (1 - across) + below[:, right] * across
    pixels: np.ndarray = above * (1 - down) + below * down
    return pixels


def _axis(low: int, high: int, side: int, count: int) -> _Axis:
    length = max(high - low + 1, 1)
    inside = slice(max(low, 0), max(min(high + 1, side), max(low, 0)))
    place = np.arange(inside.start, inside.stop) - low
    f32 = np.float32
    position = np.maximum((place.astype(f32) + f32(0.5)) * (f32(count) / f32(length)) - f32(0.5), f32(0))
    lower = np.minimum(position.astype(np.int64), count - 1)
    return _Axis(inside, lower, np.minimum(lower + 1, count - 1), position - lower.astype(f32))
