"""Run-length encoded masks of COCO's format: read with checks, and turned into polygons."""

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


def mask_to_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons whose raster by pycocotools' rule is exactly ``mask``.

    Their vertices are the corners of pixels. One part is one connected region; a hole is joined to what surrounds it by a
    vertical slit of no width, since the parts of an object are united.

    Args:
        mask: bool ``[h, w]``.

    Returns:
        The parts, float64 ``x y x y ...`` each; none for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    above_left, above_right, below_left, below_right = inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]
    corner = above_left ^ above_right ^ below_left ^ below_right
    # Where two pixels touch diagonally, two corners meet.
    touch = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    count = corner + 2 * touch
    ys, xs = np.nonzero(count)
    number = count[ys, xs]
    ys, xs = np.repeat(ys, number), np.repeat(xs, number)
    # In the order of rows, corners 2 i and 2 i + 1 bound a horizontal edge; in the order of columns, a vertical one.
    order = np.lexsort((ys, xs))
    vertical = np.empty(len(order), int)
    vertical[order[::2]], vertical[order[1::2]] = order[1::2], order[::2]
    loops, loop_of = _loops(vertical.tolist())
    parts = _join_holes(loops, loop_of, ys, xs, inside)
    offset = np.array([left, top], float)
    return [(np.array(part, float) + offset).ravel() for part in parts]


def _loops(vertical: list[int]) -> tuple[list[list[int]], np.ndarray]:
    """Closed paths of corners along horizontal and vertical edges in turn, and the path of each horizontal edge.

    Each begins with its highest horizontal edge, from left to right.
    """
    loops: list[list[int]] = []
    loop_of = np.full(len(vertical) // 2, -1)
    for start in range(0, len(vertical), 2):
        if loop_of[start // 2] >= 0:
            continue
        loop: list[int] = []
        corner = start
        while not loop or corner != start:
            loop += [corner, corner ^ 1]
            loop_of[corner // 2] = len(loops)
            corner = vertical[corner ^ 1]
        loops.append(loop)
    return loops, loop_of


def _join_holes(
    loops: list[list[int]], loop_of: np.ndarray, ys: np.ndarray, xs: np.ndarray, inside: np.ndarray
) -> list[list[tuple[int, int]]]:
    """The vertices of each region's outline, with its holes."""
    edge_y, edge_left, edge_right = ys[::2], xs[::2], xs[1::2]
    # For a horizontal edge the detours that begin on it: their column and their vertices.
    detours: dict[int, list[tuple[int, list[tuple[int, int]]]]] = {}
    outlines = []
    # From below: a hole's own detours are complete before its own.
    for loop in reversed(loops):
        vertices: list[tuple[int, int]] = []
        for corner in loop[::2]:
            here, there = (int(xs[corner]), int(ys[corner])), (int(xs[corner ^ 1]), int(ys[corner]))
            vertices.append(here)
            for x, detour in sorted(detours.pop(corner // 2, ()), reverse=here > there):
                vertices += [(x, here[1]), *detour, (x, here[1])]
            vertices.append(there)
        x, y = vertices[0]
        # The pixel below the highest edge, in the padded mask.
        if inside[y + 1, x + 1]:
            outlines.append(vertices)
            continue
        edges = np.flatnonzero((edge_left <= x) & (x < edge_right) & (edge_y < y))
        detours.setdefault(int(edges[-1]), []).append((x, [*vertices, (x, y)]))
    return outlines[::-1]
