"""Polygons around the pixels of a mask."""

import numpy as np

Vertex = tuple[int, int]


def outlines(mask: np.ndarray) -> list[list[int]]:
    """The outlines of a mask as polygons ``x y x y ...`` along the borders of its pixels.

    There is one for each connected region. COCO's polygons have no holes, since an object is the union of its polygons:
    here a vertical line there and back joins a hole to the outline around it. pycocotools, and
    :func:`gw_jax.detection.polygons.rasterize`, make the same mask of them.

    Args:
        mask: bool ``[h, w]``.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection.data.outlines import outlines
        >>> outlines(np.pad(np.ones((2, 3), bool), 1))
        [[1, 1, 4, 1, 4, 3, 1, 3]]
    """
    mask = np.asarray(mask, bool)
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
    polygons = []
    for region in _join_holes(_loops(vertical.tolist()), ys, xs, inside):
        points = np.add(region, (left, top))
        # A line to a hole may begin at a corner.
        polygons.append(points[(points != np.roll(points, 1, 0)).any(1)].ravel().tolist())
    return polygons


def _loops(vertical: list[int]) -> list[list[int]]:
    """Closed paths of corners along horizontal and vertical edges in turn.

    Each begins with its highest horizontal edge, from left to right.
    """
    loops: list[list[int]] = []
    seen = [False] * len(vertical)
    for start in range(0, len(vertical), 2):
        if seen[start]:
            continue
        loop: list[int] = []
        corner = start
        while not loop or corner != start:
            loop += [corner, corner ^ 1]
            seen[corner] = seen[corner ^ 1] = True
            corner = vertical[corner ^ 1]
        loops.append(loop)
    return loops


def _join_holes(loops: list[list[int]], ys: np.ndarray, xs: np.ndarray, inside: np.ndarray) -> list[list[Vertex]]:
    """The vertices of each region's outline, with its holes."""
    edge_y, edge_left, edge_right = ys[::2], xs[::2], xs[1::2]
    # For a horizontal edge the detours that begin on it: their column and their vertices.
    detours: dict[int, list[tuple[int, list[Vertex]]]] = {}
    regions = []
    # From below: a hole's own detours are complete before its own.
    for loop in reversed(loops):
        vertices: list[Vertex] = []
        for corner in loop[::2]:
            here, there = (int(xs[corner]), int(ys[corner])), (int(xs[corner ^ 1]), int(ys[corner]))
            vertices.append(here)
            for x, detour in sorted(detours.pop(corner // 2, ()), reverse=here > there):
                vertices += [(x, here[1]), *detour, (x, here[1])]
            vertices.append(there)
        x, y = vertices[0]
        # The pixel below the highest edge, in the padded mask.
        if inside[y + 1, x + 1]:
            regions.append(vertices)
            continue
        edges = np.flatnonzero((edge_left <= x) & (x < edge_right) & (edge_y < y))
        detours.setdefault(int(edges[-1]), []).append((x, [*vertices, (x, y)]))
    return regions[::-1]
