"""Masks as COCO stores them: lengths of runs, column by column; written, and read with checks."""

from typing import Any

import numpy as np

from gw_jax.errors import raise_missing_package

# Of a number of a compressed mask: 60 bits.
_MAX_CHARACTERS = 12


def encode_region(region: np.ndarray, rows: slice, columns: slice, size: tuple[int, int]) -> dict[str, Any]:
    """The compressed run lengths of a mask that is False outside of a region, as ``pycocotools.mask.encode`` gives them.

    Only the region is read: a mask of a 12-megapixel image takes no time to speak of.

    Args:
        region: bool ``[h, w]``.
        rows: where the region is in the image.
        columns: likewise.
        size: (height, width) of the image.

    Returns:
        ``{"size": [height, width], "counts": str}``, JSON values.

    Raises:
        ConfigError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise_missing_package(error, "Encoding masks", "detection")
    height, width = map(int, size)
    counts = _run_lengths(region, rows.start, columns.start, height, width)
    encoded = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def encode_uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """The run lengths of a mask as COCO's files have them for crowds.

    Args:
        mask: bool ``[height, width]``.

    Returns:
        ``{"size": [height, width], "counts": list of int}``, JSON values.
    """
    height, width = mask.shape
    return {"size": [height, width], "counts": _run_lengths(mask, 0, 0, height, width)}


def _run_lengths(region: np.ndarray, top: int, left: int, height: int, width: int) -> list[int]:
    """Lengths of the runs of False and True in turns, from the first column down; the first one may be 0."""
    by_column = np.ascontiguousarray(region.T)
    edges = np.zeros((by_column.shape[0], by_column.shape[1] + 2), np.int8)
    edges[:, 1:-1] = by_column
    steps = np.diff(edges, axis=1)
    (first_columns, first_rows), (last_columns, last_rows) = np.nonzero(steps == 1), np.nonzero(steps == -1)
    starts = (left + first_columns) * height + top + first_rows
    ends = (left + last_columns) * height + top + last_rows
    # A run that reaches the end of a column may continue at the start of the next one.
    joined = ends[:-1] == starts[1:]
    starts, ends = np.delete(starts, np.flatnonzero(joined) + 1), np.delete(ends, np.flatnonzero(joined))
    borders = np.concatenate([[0], np.stack([starts, ends], 1).ravel(), [height * width]])
    lengths: list[int] = np.diff(borders).tolist()
    return lengths[:-1] if len(lengths) > 1 and lengths[-1] == 0 else lengths


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
