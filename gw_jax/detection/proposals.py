"""From the outputs of the region proposal network to proposals, in static shapes."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gw_jax.detection.anchors import LEVELS, RATIOS, STRIDES, anchors_at
from gw_jax.ops.boxes import clip, decode
from gw_jax.ops.checks import accumulation_dtype, require_integer
from gw_jax.ops.nms import greedy
from gw_jax.ops.per_device import on_each_device

WEIGHTS = (1.0, 1.0, 1.0, 1.0)
Levels = Mapping[str, jax.Array]


class Proposals(NamedTuple):
    """Boxes ``[n, k, 4]`` in pixels, scores ``[n, k]`` and, bool ``[n, k]``, which rows are present."""

    boxes: jax.Array
    scores: jax.Array
    present: jax.Array


def propose(
    logits: Levels,
    deltas: Levels,
    valid: jax.Array,
    sizes: jax.Array,
    *,
    pre_nms_top_n: int = 1000,
    post_nms_top_n: int = 1000,
    nms_threshold: float = 0.7,
    num_proposals: int = 1000,
    pool_images: int = 1,
) -> Proposals:
    """The proposals of a batch of images.

    On each level the ``pre_nms_top_n`` anchors of highest score (the sigmoid of the logit) become boxes, which are clipped
    to the image; non-maximum suppression leaves ``post_nms_top_n`` at most. The best ``num_proposals`` of all levels of an
    image are its proposals. Anchors outside the valid area of a feature map, ``ceil(valid / stride)``, take no part, nor
    do those with a logit or delta that is not finite. No gradient passes.

    Args:
        logits: "P2" to "P6", each ``[n, h, w, 3]``, floating point.
        deltas: "P2" to "P6", each ``[n, h, w, 12]``; channel ``4 * anchor + coordinate``.
        valid: integers ``[n, 2]``, the (height, width) of each image rounded up to multiples of 32.
        sizes: integers ``[n, 2]``, the true (height, width).
        pre_nms_top_n: 2000 in training, 1000 in a test.
        post_nms_top_n: 2000 in training, 1000 in a test.
        nms_threshold: an IoU above it suppresses.
        num_proposals: per image.
        pool_images: with ``p > 1`` the best ``p * num_proposals`` of every ``p`` consecutive images are taken, whichever
            images they are from. The reference does so in training, with the images of a device (2 of ResNet-50).

    Returns:
        ``pool_images * num_proposals`` rows per image by falling score, the absent ones last and zero. Boxes and scores are
        float32, or float64 where the logits are.

    Raises:
        ValueError: a level is missing, shapes do not fit, or an option is out of range.

    Source: maskrcnn-benchmark, ``RPNPostProcessor``; per image, not pooled, as in its correction (pull request 695).

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection.proposals import propose
        >>> sides = {"P2": 16, "P3": 8, "P4": 4, "P5": 2, "P6": 1}
        >>> logits = {level: jnp.zeros((1, side, side, 3)) for level, side in sides.items()}
        >>> deltas = {level: jnp.zeros((1, side, side, 12)) for level, side in sides.items()}
        >>> size = jnp.array([[64, 64]])
        >>> propose(logits, deltas, size, size, num_proposals=50).boxes.shape
        (1, 50, 4)
    """
    _require(logits, deltas, valid, sizes, nms_threshold, pool_images)
    numbers = {"pre_nms_top_n": pre_nms_top_n, "post_nms_top_n": post_nms_top_n, "num_proposals": num_proposals}
    for name, value in numbers.items():
        require_integer(name, value, 1)

    def of_images(logits: Levels, deltas: Levels, valid: jax.Array, sizes: jax.Array) -> Proposals:
        best = [_best_of_level(level, logits[level], deltas[level], valid, pre_nms_top_n) for level in LEVELS]
        boxes, scores, kept = _suppressed(best, sizes, nms_threshold, post_nms_top_n)
        rows = pool_images * num_proposals
        if pool_images > 1:
            pooled = len(boxes) // pool_images, -1
            kept = _best(scores.reshape(pooled), kept.reshape(pooled), rows).reshape(kept.shape)
        return _sorted(boxes, scores, kept, rows)

    return on_each_device(of_images, dict(logits), dict(deltas), valid, sizes, multiple=pool_images)


def _best_of_level(
    level: str, logits: jax.Array, deltas: jax.Array, valid: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Boxes ``[n, k, 4]``, not clipped, and scores ``[n, k]`` of the best anchors of a level, by falling score.

    The score is -1 where there is no anchor.
    """
    n, height, width, _ = logits.shape
    dtype = accumulation_dtype(logits.dtype)
    scores = jax.nn.sigmoid(jax.lax.stop_gradient(logits).astype(dtype))
    deltas = jax.lax.stop_gradient(deltas).astype(dtype).reshape(n, -1, 4)
    rows, columns = -(-valid.astype(jnp.int32).T[:, :, None] // STRIDES[level])
    inside_y = jnp.arange(height, dtype=jnp.int32)[None, :] < rows
    inside_x = jnp.arange(width, dtype=jnp.int32)[None, :] < columns
    exists = (inside_y[:, :, None] & inside_x[:, None, :])[..., None] & ~jnp.isnan(scores)
    scores = jnp.where(exists, scores, -jnp.ones_like(scores)).reshape(n, -1)
    scores, indices = jax.lax.top_k(scores, min(count, scores.shape[1]))
    chosen = jnp.take_along_axis(deltas, indices[..., None], 1)
    return decode(chosen, anchors_at(indices, width, level).astype(dtype), WEIGHTS), scores


def _suppressed(
    levels: list[tuple[jax.Array, jax.Array]], sizes: jax.Array, threshold: float, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Clipped boxes ``[n, k, 4]``, scores and, bool ``[n, k]``, the ``count`` of each level that suppression keeps."""
    # All levels of all images in one loop, each level padded to the longest.
    longest = max(scores.shape[1] for _, scores in levels)
    boxes = jnp.stack([jnp.pad(boxes, ((0, 0), (0, longest - boxes.shape[1]), (0, 0))) for boxes, _ in levels], 1)
    scores = jnp.stack(
        [jnp.pad(scores, ((0, 0), (0, longest - scores.shape[1])), constant_values=-1) for _, scores in levels], 1
    )
    candidate = (scores >= 0) & jnp.isfinite(boxes).all(-1)
    n = len(boxes)
    boxes = clip(boxes.reshape(n, -1, 4), sizes).reshape(boxes.shape)
    # Rounding can make a tiny side negative.
    candidate &= (boxes[..., 2:] - boxes[..., :2] + 1 >= 0).all(-1)

    def suppress(boxes: jax.Array, candidate: jax.Array) -> jax.Array:
        return greedy(boxes, candidate, threshold, limit=count)

    kept = jax.vmap(jax.vmap(suppress))(boxes, candidate)
    kept &= jnp.cumsum(kept, -1) <= count
    return boxes.reshape(n, -1, 4), scores.reshape(n, -1), kept.reshape(n, -1)


def _best(scores: jax.Array, kept: jax.Array, count: int) -> jax.Array:
    """The mask ``[n, k]`` of the ``count`` kept ones of highest score of each row."""
    if count >= scores.shape[1]:
        return kept
    values, indices = jax.lax.top_k(jnp.where(kept, scores, -jnp.ones_like(scores)), count)
    rows = jnp.arange(len(scores))[:, None]
    return jnp.zeros_like(kept).at[rows, indices].set(values >= 0, unique_indices=True)


def _sorted(boxes: jax.Array, scores: jax.Array, kept: jax.Array, count: int) -> Proposals:
    """``count`` rows per image by falling score, those that are not kept last and zero."""
    values, indices = jax.lax.top_k(jnp.where(kept, scores, -jnp.ones_like(scores)), min(count, scores.shape[1]))
    present = values >= 0
    boxes = jnp.where(present[..., None], jnp.take_along_axis(boxes, indices[..., None], 1), jnp.zeros((), boxes.dtype))
    missing = count - scores.shape[1]
    if missing > 0:
        boxes = jnp.pad(boxes, ((0, 0), (0, missing), (0, 0)))
        values, present = (jnp.pad(a, ((0, 0), (0, missing))) for a in (values, present))
    return Proposals(boxes, jnp.where(present, values, jnp.zeros_like(values)), present)


def _require(
    logits: Levels,
    deltas: Levels,
    valid: jax.Array,
    sizes: jax.Array,
    nms_threshold: float,
    pool_images: int,
) -> None:
    for name, levels in (("logits", logits), ("deltas", deltas)):
        if set(levels) != set(LEVELS):
            raise ValueError(f"propose got {name} of {', '.join(sorted(levels))}; it requires {', '.join(LEVELS)}.")
    n = logits["P2"].shape[0]
    for level in LEVELS:
        shape = logits[level].shape
        if (
            len(shape) != 4
            or shape[0] != n
            or shape[-1] != len(RATIOS)
            or deltas[level].shape != (*shape[:3], 4 * shape[3])
        ):
            raise ValueError(
                f"propose got {level} logits of shape {shape} and deltas of shape {deltas[level].shape} for {n} images; it "
                "requires [n, h, w, 3] and [n, h, w, 12]."
            )
    if valid.shape != (n, 2) or sizes.shape != (n, 2):
        raise ValueError(
            f"propose got valid of shape {valid.shape} and sizes of shape {sizes.shape}; both must be ({n}, 2)."
        )
    if not 0 <= nms_threshold <= 1:
        raise ValueError(f"nms_threshold={nms_threshold}; it must be between 0 and 1.")
    if n % require_integer("pool_images", pool_images, 1):
        raise ValueError(f"pool_images={pool_images} does not divide the batch of {n} images.")
