"""Mask targets: polygons cropped to boxes and rasterised by the rule of pycocotools, on the device and in static shapes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax.ops.checks import as_floating, require_integer
from gw_jax.ops.chunks import map_chunks
from gw_jax.ops.exact import halves, quotient

# Polygons are rasterised at five times the resolution of the mask.
UPSAMPLING = 5
# Rounded vertices are clamped here, so that products of them are divided exactly in int32: 800,000 pixels of a mask away.
FARTHEST = 2**22
WORD = 32


def pad_polygons(polygons: Sequence[Sequence[Any]], *, max_objects: int, max_edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad the polygons of one image to a fixed number of objects and edges. On the host.

    Args:
        polygons: the instances, each a list of parts, each part a flat list x y x y ... in pixels, as in the annotations of
            COCO. Parts with fewer than 6 numbers are dropped.
        max_objects: instances of the result.
        max_edges: edges of an instance, over all of its parts. A part has as many edges as vertices.

    Returns:
        ``edges`` float32 ``[max_objects, max_edges, 4]``, x y of the start and x y of the end of each, and ``parts`` int32
        ``[max_objects, max_edges]``, the number of the part to which each belongs, ascending, -1 where there is no edge.

    Raises:
        ValueError: too many instances or edges, a part with an odd number of coordinates, or one that is not finite.

    Source: ``PolygonInstance`` of the reference.

    Example:
        >>> from gw_jax.detection.polygons import pad_polygons
        >>> edges, parts = pad_polygons([[[0, 0, 8, 0, 0, 8]]], max_objects=1, max_edges=4)
        >>> edges[0].tolist()
        [[0.0, 0.0, 8.0, 0.0], [8.0, 0.0, 0.0, 8.0], [0.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
        >>> parts[0].tolist()
        [0, 0, 0, -1]
    """
    max_objects = require_integer("max_objects", max_objects, 0)
    max_edges = require_integer("max_edges", max_edges, 0)
    if len(polygons) > max_objects:
        raise ValueError(f"An image has {len(polygons)} objects; at most max_objects={max_objects} are allowed. Raise it.")
    edges = np.zeros((max_objects, max_edges, 4), np.float32)
    parts = np.full((max_objects, max_edges), -1, np.int32)
    for index, instance in enumerate(polygons):
        if not isinstance(instance, (Sequence, np.ndarray)):
            raise ValueError(
                f"Object {index} is a {type(instance).__name__}; a list of parts is needed, each a flat list x y x y ..."
            )
        closed = [_edges(index, part) for part in instance]
        closed = [part for part in closed if len(part) > 2]
        count = sum(len(part) for part in closed)
        if count > max_edges:
            raise ValueError(
                f"Object {index} has polygons of {count} edges; at most max_edges={max_edges} are allowed. Raise it."
            )
        if closed:
            edges[index, :count] = np.concatenate(closed)
            parts[index, :count] = np.repeat(np.arange(len(closed)), [len(part) for part in closed])
    return edges, parts


def count_edges(polygons: Sequence[Any]) -> int:
    """The largest number of edges of an instance. What is no polygon has none; :func:`pad_polygons` refuses it."""
    instances = [instance for instance in polygons if isinstance(instance, (Sequence, np.ndarray))]
    return max((sum(len(part) // 2 for part in parts if hasattr(part, "__len__")) for parts in instances), default=0)


def _edges(index: int, part: Any) -> np.ndarray:
    """``[vertices, 4]`` of a flat list of coordinates."""
    try:
        flat = np.asarray(part, np.float32)
    except (TypeError, ValueError):
        flat = np.zeros((0, 0), np.float32)
    if flat.ndim != 1 or len(flat) % 2 or not np.isfinite(flat).all():
        raise ValueError(
            f"A polygon of object {index} is not a flat list x y x y ... of finite numbers; an instance is a list of such "
            "lists, one for each part."
        )
    vertices = flat.reshape(-1, 2)
    return np.concatenate([vertices, np.roll(vertices, -1, 0)], -1)


def mask_targets(polygons: Sequence[Sequence[Any]], boxes: jax.Array, size: int = 28) -> jax.Array:
    """Crop polygons to boxes and rasterise them: :func:`pad_polygons`, then :func:`rasterize`.

    Args:
        polygons: ``k`` instances, each a list of parts x y x y ..., that of box ``i`` at position ``i``.
        boxes: ``[k, 4]``, x1 y1 x2 y2 in pixels. They are clamped to the image at its left and upper border only, since its
            size is not known.
        size: rows and columns of the masks.

    Returns:
        bool ``[k, size, size]``.

    Raises:
        ValueError: polygons that :func:`pad_polygons` refuses, or another number of instances than of boxes.

    Source: ``project_masks_on_boxes`` of the reference.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection.ops import mask_targets
        >>> square = [[10, 10, 20, 10, 20, 20, 10, 20]]
        >>> mask_targets([square], jnp.array([[0.0, 0.0, 40.0, 40.0]]), size=4)[0].astype(int).tolist()
        [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    boxes = as_floating(boxes, "mask_targets")
    if boxes.shape != (len(polygons), 4):
        raise ValueError(
            f"mask_targets got {len(polygons)} instances and boxes of shape {boxes.shape}; one box each is needed."
        )
    longest = count_edges(polygons)
    # Few shapes, so that few programs are compiled.
    edges, parts = pad_polygons(polygons, max_objects=len(polygons), max_edges=max(32, 2 ** (longest - 1).bit_length()))
    return jax.jit(rasterize, static_argnames="size")(edges, parts, boxes, size=size)


def rasterize(edges: jax.Array, parts: jax.Array, boxes: jax.Array, sizes: Any = None, size: int = 28) -> jax.Array:
    """Crop padded polygons to boxes and rasterise them by the rule of pycocotools.

    In float32, with a box clamped to the image at its upper left corner only, a vertex becomes::

        q = (x - min(max(x1, 0), width - 1)) * (size / max(x2 - x1, 1)),   u = int(5 q + 0.5),   likewise v

    Each edge visits one point per step along its longer axis, from the end with the smaller coordinate there; the other
    coordinate is rounded. Where ``u`` goes from 5 k + 2 to 5 k + 3 or back, column ``k`` changes between inside and
    outside, at row ``ceil((v - 2) / 5)``, clamped to 0 .. size, with the smaller ``v`` of the two points. A pixel is set if
    an odd number of changes lies at or above it, in one of the parts at least.

    The point of an edge at a column has a closed form, so nothing is walked. It is exact; pycocotools' steps in float64 are
    not where a point is exactly between two others, which changes 1 of 1,000,000 pixels of random polygons.

    Args:
        edges: float32 ``[k, e, 4]``, x y x y, of the instance of each box, from :func:`pad_polygons`.
        parts: int32 ``[k, e]``, the part of each edge, -1 where there is none. Edges of a part are adjacent.
        boxes: ``[k, 4]``, x1 y1 x2 y2 in pixels. One that is not finite has an empty mask.
        sizes: (height, width) of the image, or None if boxes are inside of it.
        size: rows and columns of the masks.

    Returns:
        bool ``[k, size, size]``.

    Raises:
        ValueError: shapes do not fit.

    Source: ``rleFrPoly`` of pycocotools; ``SegmentationMask.crop`` of the reference.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection.polygons import pad_polygons, rasterize
        >>> edges, parts = pad_polygons([[[0, 0, 8, 0, 0, 8]]], max_objects=1, max_edges=4)
        >>> rasterize(edges, parts, jnp.array([[0.0, 0.0, 8.0, 8.0]]), (8, 8), size=4)[0].astype(int).tolist()
        [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    """
    size = require_integer("size", size, 1)
    edges, parts, boxes = jnp.asarray(edges), jnp.asarray(parts), as_floating(boxes, "rasterize")
    if edges.ndim != 3 or edges.shape[2] != 4 or parts.shape != edges.shape[:2] or boxes.shape != (edges.shape[0], 4):
        raise ValueError(
            f"rasterize got edges of shape {edges.shape}, parts {parts.shape} and boxes {boxes.shape}; "
            "[k, e, 4], [k, e] and [k, 4] are needed."
        )
    if 0 in edges.shape:
        return jnp.zeros((edges.shape[0], size, size), bool)
    lowest, scale = _crops(boxes.astype(jnp.float32), sizes, size)

    def chunk(edges: jax.Array, parts: jax.Array, lowest: jax.Array, scale: jax.Array) -> jax.Array:
        vertices = (edges.reshape(*edges.shape[:2], 2, 2) - lowest[:, None, None, :]) * scale[:, None, None, :]
        words = _changes(_rounded(vertices), parts, size)
        return _union_of_parts(words, parts, size)

    bytes_per_box = edges.shape[1] * size * 4 * -(-size // WORD)
    return map_chunks(chunk, bytes_per_box, edges.astype(jnp.float32), parts, lowest, scale)


def _crops(boxes: jax.Array, sizes: Any, size: int) -> tuple[jax.Array, jax.Array]:
    """Origin and scale, ``[k, 2]`` each as x y; the scale of a box that is not finite is NaN."""
    lowest = jnp.maximum(boxes[:, :2], 0)
    if sizes is not None:
        height, width = (jnp.asarray(side).astype(jnp.float32) for side in sizes)
        lowest = jnp.minimum(lowest, jnp.stack([width, height])[None] - 1)
    extent = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    scale = quotient(jnp.full_like(extent, size), extent)
    return lowest, jnp.where(jnp.isfinite(boxes).all(-1, keepdims=True), scale, jnp.nan)


def _rounded(q: jax.Array) -> jax.Array:
    """``int(5 q + 0.5)``, of the exact value, as C truncates; NaN gives ``-FARTHEST``."""
    q = jnp.where(jnp.isnan(q), -FARTHEST, jnp.clip(q, -FARTHEST / UPSAMPLING, FARTHEST / UPSAMPLING))
    upper, lower = halves(q)
    nearest = jnp.round(UPSAMPLING * q)
    # Of 5 q - nearest, which is between -1 and 1.
    rest = (UPSAMPLING * upper - nearest) + UPSAMPLING * lower
    floor = jnp.where(rest >= 0.5, nearest + 1, jnp.where(rest >= -0.5, nearest, nearest - 1))
    truncated = jnp.where((floor < 0) & (jnp.abs(rest) != 0.5), floor + 1, floor)
    return truncated.astype(jnp.int32)


def _changes(vertices: jax.Array, parts: jax.Array, size: int) -> jax.Array:
    """The rows of each column that an edge changes, as bits of uint32 words ``[k, e, columns, words]``.

    Args:
        vertices: int32 ``[k, e, 2, 2]``: start and end, x and y.
        parts: int32 ``[k, e]``.
        size: rows and columns.
    """
    (x0, y0), (x1, y1) = ((vertices[:, :, end, 0], vertices[:, :, end, 1]) for end in range(2))
    along_x = jnp.abs(x1 - x0) >= jnp.abs(y1 - y0)
    flip = jnp.where(along_x, x0 > x1, y0 > y1)
    x0, x1, y0, y1 = (jnp.where(flip, other, one)[:, :, None] for one, other in ((x0, x1), (x1, x0), (y0, y1), (y1, y0)))
    dx, dy, along_x = x1 - x0, y1 - y0, along_x[:, :, None]
    column = (UPSAMPLING * jnp.arange(size, dtype=jnp.int32) + UPSAMPLING // 2)[None, None, :]
    crosses = (jnp.minimum(x0, x1) <= column) & (column < jnp.maximum(x0, x1)) & (parts >= 0)[:, :, None]
    # v - y0 of the point before the change, or of the lower one of both:
    # floor((2 dy t + dx) / 2 dx) along x; the step before 2 |dx| t reaches (2 |column - x0| +- 1) dy along y.
    before = jnp.where(
        along_x, column - x0 + (dy < 0).astype(jnp.int32), jnp.where(dx > 0, 2 * (column - x0) + 1, 2 * (x0 - column) - 1)
    )
    factor = jnp.where(along_x, 2 * dy, dy)
    extra = jnp.where(along_x, dx, jnp.where(dx > 0, -1, 0))
    v = y0 + _floor_ratio(factor, before, extra, jnp.maximum(2 * jnp.abs(dx), 1))
    row = jnp.where(crosses, jnp.clip((v + UPSAMPLING // 2) // UPSAMPLING, 0, size), size)
    shift = jnp.clip(row[..., None] - WORD * jnp.arange(-(-size // WORD), dtype=jnp.int32)[None, None, None, :], 0, WORD)
    ones = jnp.full(shift.shape, 2**WORD - 1, jnp.uint32)
    return jnp.where(crosses[..., None] & (shift < WORD), ones << jnp.minimum(shift, WORD - 1).astype(jnp.uint32), 0)


def _floor_ratio(a: jax.Array, b: jax.Array, extra: jax.Array, divisor: jax.Array) -> jax.Array:
    """``floor((a b + extra) / divisor)`` where ``a b`` exceeds int32: the rest beside a float32 estimate does not."""
    float32 = jnp.float32
    estimate = jnp.floor(a.astype(float32) * b.astype(float32) / divisor.astype(float32))
    estimate = jnp.clip(estimate, -4 * FARTHEST, 4 * FARTHEST).astype(jnp.int32)
    return estimate + (a * b + extra - estimate * divisor) // divisor


def _union_of_parts(words: jax.Array, parts: jax.Array, size: int) -> jax.Array:
    """The pixels that an odd number of edges of a part changes, of any part: bool ``[k, rows, columns]``."""
    first = jnp.pad(parts[:, 1:] != parts[:, :-1], ((0, 0), (1, 0)), constant_values=True)

    # An associative scan takes 7 times as long to compile, and 2.5 times as long to run on a CPU.
    def step(carry: tuple[jax.Array, jax.Array], edge: tuple[jax.Array, jax.Array]) -> Any:
        union, parity = carry
        first, word = edge[0][:, None, None], edge[1]
        return (jnp.where(first, union | parity, union), jnp.where(first, word, parity ^ word)), None

    zeros = jnp.zeros_like(words[:, 0])
    (union, parity), _ = jax.lax.scan(step, (zeros, zeros), (first.T, words.swapaxes(0, 1)), unroll=4)
    union |= parity
    rows = jnp.arange(WORD, dtype=jnp.uint32)[None, None, None, :]
    pixels = ((union[..., None] >> rows) & 1).astype(bool)
    return pixels.reshape(*pixels.shape[:2], -1)[:, :, :size].swapaxes(1, 2)
