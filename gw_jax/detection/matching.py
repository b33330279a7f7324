"""Matching of boxes with ground truth by their overlap."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gw_jax.ops.checks import as_floating

NEGATIVE = -1
IGNORED = -2


def match(
    iou: ArrayLike,
    high: float,
    low: float,
    allow_low_quality: bool,
    present: ArrayLike | None = None,
) -> jax.Array:
    """The ground truth that each box is matched with.

    A box belongs to the ground truth of its largest IoU, the lower index first in ties. It is positive if that IoU is at
    least ``high``, negative if it is below ``low``, and else ignored. With ``allow_low_quality``, every box that has the
    largest IoU of some ground truth (ties included) becomes positive: with the ground truth of its own largest IoU, which
    may be another one.

    Args:
        iou: ``[g, b]``, ground truth by boxes, floating point.
        high: the RPN has 0.7, the heads 0.5.
        low: the RPN has 0.3, the heads 0.5.
        allow_low_quality: true in the RPN.
        present: bool ``[g]``; absent ground truth matches no box, and without any, all boxes are negative.
            None: all is present.

    Returns:
        int32 ``[b]``: an index of ground truth, -1 for a negative, -2 for an ignored box.

    Raises:
        TypeError: ``iou`` is not floating point, or ``present`` not bool.
        ValueError: the shapes do not fit, or ``low`` is above ``high``.

    Source: maskrcnn-benchmark, ``Matcher``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection.matching import match
        >>> iou = jnp.array([[0.8, 0.4, 0.1, 0.0], [0.0, 0.5, 0.2, 0.1]])
        >>> match(iou, 0.7, 0.3, False).tolist(), match(iou, 0.7, 0.3, True).tolist()
        ([0, -2, -1, -1], [0, 1, -1, -1])
    """
    iou = as_floating(iou, "match")
    if iou.ndim != 2:
        raise ValueError(
            f"match got iou of shape {iou.shape}; it requires [ground truth, boxes]. Use jax.vmap for a batch."
        )
    if not any(isinstance(value, jax.core.Tracer) for value in (low, high)) and not low <= high:
        raise ValueError(f"low={low} is above high={high}.")
    exists = jnp.ones(len(iou), bool) if present is None else jnp.asarray(present)
    if exists.dtype != bool:
        raise TypeError(f"match got present of type {exists.dtype}; it requires bool.")
    if exists.shape != iou.shape[:1]:
        raise ValueError(
            f"match got present of shape {exists.shape} for iou of shape {iou.shape}; it requires one per row."
        )
    exists = exists[:, None]
    if 0 in iou.shape:
        return jnp.full(iou.shape[1], NEGATIVE, jnp.int32)
    # Below every IoU, so that what is absent is no maximum and ties with none.
    iou = jnp.where(exists & ~jnp.isnan(iou), iou, -jnp.ones_like(iou))
    # It is compared with its own maxima. Without a barrier XLA may compute it once per use, with other roundings.
    iou = jax.lax.optimization_barrier(iou)
    best = jnp.argmax(iou, 0).astype(jnp.int32)
    best_iou = jnp.max(iou, 0)
    below = jnp.where(best_iou < low, jnp.int32(NEGATIVE), jnp.int32(IGNORED))
    matches = jnp.where(best_iou >= high, best, below)
    if allow_low_quality:
        tied = jnp.any((iou == jnp.max(iou, 1, keepdims=True)) & exists, 0)
        matches = jnp.where(tied, best, matches)
    return matches
