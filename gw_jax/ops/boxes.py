"""Boxes ``x1 y1 x2 y2`` in pixels with both ends inclusive: sizes, overlaps, and their code relative to other boxes.

A side is ``x2 - x1 + 1`` long everywhere here: in areas, overlaps and codes.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gw_jax.ops.checks import as_floating

# A decoded box is at most 1000 / 16 times as wide and as high as its proposal.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes: ArrayLike) -> jax.Array:
    """The area of each box, ``(x2 - x1 + 1) (y2 - y1 + 1)``.

    Args:
        boxes: ``[..., 4]``, floating point.

    Returns:
        ``[...]``, square pixels, of the type of ``boxes``.

    Raises:
        TypeError: ``boxes`` is not floating point.
        ValueError: its last axis is not 4.

    Source: maskrcnn-benchmark, ``BoxList.area``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.boxes import area
        >>> area(jnp.array([[0.0, 0.0, 9.0, 4.0]])).tolist()
        [50.0]
    """
    x1, y1, x2, y2 = _coordinates(as_boxes(boxes, "area"))
    return (x2 - x1 + 1) * (y2 - y1 + 1)


def iou(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """Intersection over union of every box of ``a`` with every box of ``b``.

    ``intersection / (area_a + area_b - intersection)`` with sides of ``x2 - x1 + 1`` pixels. Boxes that do not meet, and
    boxes with a NaN, give 0.

    Args:
        a: ``[n, 4]``, floating point.
        b: ``[m, 4]``, of the same type.

    Returns:
        ``[n, m]``, of their type.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: an argument is not ``[k, 4]``, or their types differ.

    Source: maskrcnn-benchmark, ``boxlist_iou``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.boxes import iou
        >>> a, b = jnp.array([[0.0, 0.0, 9.0, 9.0]]), jnp.array([[5.0, 0.0, 14.0, 9.0], [10.0, 0.0, 19.0, 9.0]])
        >>> print(iou(a, b).round(4))
        [[0.3333 0.    ]]
    """
    a, b = as_boxes(a, "iou", ndim=2), as_boxes(b, "iou", ndim=2)
    if a.dtype != b.dtype:
        raise ValueError(f"iou got boxes of types {a.dtype} and {b.dtype}; cast one of them.")
    return iou_of_columns(a.T, b.T)


def iou_of_columns(a: jax.Array, b: jax.Array) -> jax.Array:
    """:func:`iou` of boxes ``[4, n]`` and ``[4, m]``: each coordinate is contiguous, which the inner loop reads faster."""
    ax1, ay1, ax2, ay2 = (a[i, :, None] for i in range(4))
    bx1, by1, bx2, by2 = (b[i, None, :] for i in range(4))
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1) + 1, 0)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1) + 1, 0)
    intersection = width * height
    union = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1) - intersection
    meet = intersection > 0
    return jnp.where(meet, intersection / jnp.where(meet, union, jnp.ones_like(union)), jnp.zeros_like(union))


def encode(reference: ArrayLike, proposals: ArrayLike, weights: Sequence[float]) -> jax.Array:
    """The code of each reference box relative to its proposal.

    With widths ``w``, heights ``h`` and centres ``cx = x1 + w / 2``, ``cy = y1 + h / 2`` of the reference ``g`` and the
    proposal ``p`` ::

        (wx (cx_g - cx_p) / w_p,  wy (cy_g - cy_p) / h_p,  ww ln(w_g / w_p),  wh ln(h_g / h_p))

    A side that is not positive counts as one pixel, so that absent rows stay finite.

    Args:
        reference: ``[..., 4]``, floating point.
        proposals: ``[..., 4]``, of the same shape and type.
        weights: ``(wx, wy, ww, wh)``: (1, 1, 1, 1) in the RPN, (10, 10, 5, 5) in the box head.

    Returns:
        ``[..., 4]``, of the same type.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: shapes or types do not fit, or ``weights`` are not four numbers.

    Source: maskrcnn-benchmark, ``BoxCoder.encode``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.boxes import encode
        >>> reference, proposal = jnp.array([[20.0, 15.0, 119.0, 64.0]]), jnp.array([[10.0, 20.0, 109.0, 69.0]])
        >>> encode(reference, proposal, (10.0, 10.0, 5.0, 5.0)).tolist()
        [[1.0, -1.0, 0.0, 0.0]]
    """
    reference, proposals = as_boxes(reference, "encode"), as_boxes(proposals, "encode")
    if reference.shape != proposals.shape or reference.dtype != proposals.dtype:
        raise ValueError(
            f"encode got reference {reference.dtype}{list(reference.shape)} and proposals {proposals.dtype}"
            f"{list(proposals.shape)}; they must have the same shape and type."
        )
    wx, wy, ww, wh = _require_weights(weights)
    (gx, gy, gw, gh), (px, py, pw, ph) = _centres_and_sides(reference), _centres_and_sides(proposals)
    gw, gh, pw, ph = (jnp.where(side > 0, side, jnp.ones_like(side)) for side in (gw, gh, pw, ph))
    codes = (wx * (gx - px) / pw, wy * (gy - py) / ph, ww * jnp.log(gw / pw), wh * jnp.log(gh / ph))
    return jnp.stack(codes, -1)


def decode(codes: ArrayLike, proposals: ArrayLike, weights: Sequence[float]) -> jax.Array:
    """The boxes that ``codes`` mean relative to their proposals, for one class or several; the inverse of :func:`encode`.

    With ``(dx, dy, dw, dh)`` the code divided by the weights, and ``dw``, ``dh`` at most ``ln(1000 / 16)`` ::

        cx = cx_p + dx w_p,   w = e^dw w_p,   x1 = cx - w / 2,   x2 = cx + w / 2 - 1

    and the same for y. The result is not clipped to an image.

    Args:
        codes: ``[..., 4 c]``, class by class, floating point.
        proposals: ``[..., 4]``, with the same leading axes and type.
        weights: ``(wx, wy, ww, wh)``: (1, 1, 1, 1) in the RPN, (10, 10, 5, 5) in the box head.

    Returns:
        ``[..., 4 c]``, of the same type.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: shapes or types do not fit, or ``weights`` are not four numbers.

    Source: maskrcnn-benchmark, ``BoxCoder.decode``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.boxes import decode
        >>> decode(jnp.zeros((1, 4)), jnp.array([[10.0, 20.0, 109.0, 69.0]]), (10.0, 10.0, 5.0, 5.0)).tolist()
        [[10.0, 20.0, 109.0, 69.0]]
    """
    codes, proposals = as_floating(codes, "decode"), as_boxes(proposals, "decode")
    if codes.shape[:-1] != proposals.shape[:-1] or codes.shape[-1] % 4 or codes.dtype != proposals.dtype:
        raise ValueError(
            f"decode got codes {codes.dtype}{list(codes.shape)} and proposals {proposals.dtype}{list(proposals.shape)}; it "
            "requires [..., 4 * classes] and [..., 4] with the same leading axes and type."
        )
    by_class = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 4, 4)
    dx, dy, dw, dh = (by_class[..., i] / weight for i, weight in enumerate(_require_weights(weights)))
    px, py, pw, ph = (value[..., None] for value in _centres_and_sides(proposals))
    cx, cy = dx * pw + px, dy * ph + py
    half_width = 0.5 * (jnp.exp(jnp.minimum(dw, MAX_LOG_SCALE)) * pw)
    half_height = 0.5 * (jnp.exp(jnp.minimum(dh, MAX_LOG_SCALE)) * ph)
    boxes = jnp.stack((cx - half_width, cy - half_height, cx + half_width - 1, cy + half_height - 1), -1)
    return boxes.reshape(codes.shape)


def clip(boxes: ArrayLike, size: ArrayLike) -> jax.Array:
    """``boxes`` with their corners moved into the image: x to ``[0, width - 1]``, y to ``[0, height - 1]``.

    Args:
        boxes: ``[k, 4]`` or ``[n, k, 4]``, floating point.
        size: ``(height, width)`` in pixels, ``[2]`` or ``[n, 2]``.

    Returns:
        Boxes of the same shape and type.

    Raises:
        TypeError: ``boxes`` is not floating point.
        ValueError: the shapes do not fit.

    Source: maskrcnn-benchmark, ``BoxList.clip_to_image``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.boxes import clip
        >>> clip(jnp.array([[-3.0, 5.0, 40.0, 12.0]]), (10, 20)).tolist()
        [[0.0, 5.0, 19.0, 9.0]]
    """
    boxes, size = as_boxes(boxes, "clip"), jnp.asarray(size)
    if size.shape != (*boxes.shape[:-2], 2) or boxes.ndim < 2:
        raise ValueError(
            f"clip got boxes of shape {boxes.shape} and size of shape {size.shape}; it requires [k, 4] with [2] "
            "(height, width), or [n, k, 4] with [n, 2]."
        )
    bottom, right = (size[..., i : i + 1].astype(boxes.dtype) - 1 for i in range(2))
    x1, y1, x2, y2 = _coordinates(boxes)
    clipped = [jnp.clip(x, jnp.zeros_like(end), end) for x, end in ((x1, right), (y1, bottom), (x2, right), (y2, bottom))]
    return jnp.stack(clipped, -1)


def as_boxes(boxes: ArrayLike, operation: str, ndim: int | None = None) -> jax.Array:
    """``boxes`` as a floating-point array whose last axis is 4.

    Raises:
        TypeError: it is not floating point.
        ValueError: it has another shape, or not ``ndim`` axes.
    """
    boxes = as_floating(boxes, operation)
    if boxes.ndim == 0 or boxes.shape[-1] != 4 or (ndim is not None and boxes.ndim != ndim):
        required = "[..., 4]" if ndim is None else f"{ndim} axes, the last of them 4:"
        raise ValueError(f"{operation} got boxes of shape {boxes.shape}; it requires {required} (x1, y1, x2, y2).")
    return boxes


def _coordinates(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _centres_and_sides(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x1, y1, x2, y2 = _coordinates(boxes)
    width, height = x2 - x1 + 1, y2 - y1 + 1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def _require_weights(weights: Sequence[float]) -> tuple[float, ...]:
    values = tuple(w if isinstance(w, jax.core.Tracer) else float(w) for w in weights)
    known = [w for w in values if isinstance(w, float)]
    if len(values) != 4 or not all(math.isfinite(w) and w > 0 for w in known):
        raise ValueError(f"weights={weights!r}; they must be four positive numbers: of x, y, width and height.")
    return values
