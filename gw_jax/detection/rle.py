"""Masks as COCO stores them: lengths of runs, column by column."""

from typing import Any

import numpy as np

from gw_jax.errors import raise_missing_package


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
