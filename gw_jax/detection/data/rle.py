"""Run-length encoded masks of COCO's format, read with checks."""

from typing import Any

import numpy as np

# Of a number of a compressed mask: 60 bits.
_MAX_CHARACTERS = 12


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask of a compressed or uncompressed RLE.

    The runs alternate between 0 and 1, from 0 on, down the columns. In compressed form each number is the difference to
    the one before the last, in characters of 5 bits, the lowest first. In Python, not by pycocotools, whose C code trusts
    what it is given.

    Args:
        segmentation: a dict with ``size``, height and width, and ``counts``, a list of numbers or a string.
        height: of the image.
        width: of the image.

    Returns:
        bool ``[height, width]``.

    Raises:
        ValueError: the mask is of another size than the image, or damaged.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"an RLE of size {size}, where the image has [{height}, {width}]")
    if isinstance(counts, str):
        runs = _decompress(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count <= height * width for count in counts):
        runs = np.array(counts, np.int64)
    else:
        raise ValueError("an RLE whose 'counts' are neither a string nor a list of integers from 0 on")
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise ValueError(f"a damaged RLE, whose counts do not sum up to {height} x {width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decompress(text: str) -> np.ndarray:
    """The runs of a compressed RLE."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    last = (codes & 32) == 0
    ends = np.flatnonzero(last)
    lengths = np.diff(ends, prepend=-1)
    if ((codes < 0) | (codes > 63)).any() or not last[-1] or lengths.max() > _MAX_CHARACTERS:
        raise ValueError("a damaged RLE, whose 'counts' are no compressed numbers")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    # The highest bit is the sign.
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    # The first three are no differences.
    numbers[1::2], numbers[2::2] = numbers[1::2].cumsum(), numbers[2::2].cumsum()
    return numbers
