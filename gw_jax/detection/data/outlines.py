"""Polygons around the pixels of a mask."""

import numpy as np

Corner = tuple[int, int]

# Directions along borders of pixels as (x, y): right, down, left, up. The inside is on the right-hand side: so a step goes
# along the upper, right, lower or left side of a pixel, from this corner of it.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_STARTS = ((0, 0), (1, 0), (1, 1), (0, 1))
_UP = 3


def outlines(mask: np.ndarray) -> list[list[int]]:
    """The outlines of a mask as polygons ``x y x y ...`` along the borders of its pixels.

    There is one for each set of pixels that are connected by their sides. COCO's polygons have no holes, since an object is
    the union of its polygons: here a line there and back joins a hole to the outline around it. pycocotools, and
    :func:`gw_jax.detection.polygons.rasterize`, make the same mask of them.

    Args:
        mask: bool ``[h, w]``.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection.data.outlines import outlines
        >>> outlines(np.pad(np.ones((2, 3), bool), 1))
        [[1, 1, 4, 1, 4, 3, 1, 3]]
    """
    inside = np.pad(np.asarray(mask, bool), 1)
    steps = _border_steps(inside)
    loops: list[list[Corner]] = []
    loop_of: dict[tuple[Corner, int], int] = {}
    while steps:
        loops.append(_take_loop(steps, loop_of, len(loops)))
    polygons: list[list[int]] = []
    # From the last: a hole is joined to a loop that begins higher, which itself is joined later.
    for loop in reversed(loops):
        x, y = loop[0]
        if inside[y + 1, x + 1]:
            polygons.append(_vertices(loop))
            continue
        # Along the pixels above the hole to the left, up to the next border.
        left = x - int(np.argmin(inside[y, : x + 1][::-1]))
        around = loops[loop_of[(left, y), _UP]]
        at = next(i for i in range(len(around) - 1) if around[i : i + 2] == [(left, y), (left, y - 1)])
        around[at:at] = [(left, y), *loop]
    return polygons[::-1]


def _border_steps(inside: np.ndarray) -> dict[Corner, list[int]]:
    """The directions of the steps from each corner, for a mask with a margin of one pixel."""
    steps: dict[Corner, list[int]] = {}
    beyond = (inside[:-2, 1:-1], inside[1:-1, 2:], inside[2:, 1:-1], inside[1:-1, :-2])
    for direction, (outside, (dx, dy)) in enumerate(zip(beyond, _STARTS, strict=True)):
        for y, x in np.argwhere(inside[1:-1, 1:-1] & ~outside).tolist():
            steps.setdefault((x + dx, y + dy), []).append(direction)
    return steps


def _take_loop(steps: dict[Corner, list[int]], loop_of: dict[tuple[Corner, int], int], number: int) -> list[Corner]:
    """Takes the loop with the uppermost corner, and of these the leftmost, out of ``steps``.

    Returns:
        All its corners, the first one at the end again.
    """
    start = point = min(steps, key=lambda corner: corner[::-1])
    direction, loop = steps[start][0], [start]
    while not (point == start and len(loop) > 1):
        # A right turn first: pixels that touch at a corner only are not connected.
        direction = next(turn % 4 for turn in (direction + 1, direction, direction - 1) if turn % 4 in steps[point])
        loop_of[point, direction] = number
        steps[point].remove(direction)
        if not steps[point]:
            del steps[point]
        dx, dy = _STEPS[direction]
        point = (point[0] + dx, point[1] + dy)
        loop.append(point)
    return loop


def _vertices(loop: list[Corner]) -> list[int]:
    """The corners at which a loop turns, as ``x y x y ...``."""
    points = np.array(loop[:-1])
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    # Steps that join holes can be longer than one, or none.
    turns = (np.sign(before) != np.sign(after)).any(1)
    return points[turns].ravel().tolist()
