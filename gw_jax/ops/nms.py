"""Non-maximum suppression in static shapes: the boxes that the greedy algorithm keeps, found in tiles.

Whether a box is kept depends on the better ones only: ``kept_j = not any_i(kept_i and A_ij)`` with ``A_ij`` true where box
``i`` is before box ``j`` and overlaps it. These equations have one solution, and iterating them from "all are kept"
finds it: every iteration settles one more box of a chain at least. A chain of 2,000 boxes would take 2,000 iterations over
all pairs, so the boxes are taken in tiles: what an earlier tile kept suppresses first, then the equations are iterated
within the tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gw_jax.ops.boxes import as_boxes, iou_of_columns
from gw_jax.ops.kernels.placement import device_kind

# Boxes per tile. Accelerators have fewer, larger steps. On a CPU a short step compares fewer pairs in vain, and is below
# the size that XLA divides among threads: 2,000 clustered boxes take a third of the time of tiles of 256.
TILE = 256
CPU_TILE = 32
# A box without area, which overlaps none.
_NOWHERE = (0.0, 0.0, -1.0, -1.0)


def nms(boxes: ArrayLike, scores: ArrayLike, threshold: float, present: ArrayLike | None = None) -> jax.Array:
    """The boxes that greedy non-maximum suppression keeps.

    The box of the highest score is kept, those whose IoU with it is above ``threshold`` are suppressed, and so on with the
    rest. Of equal scores the lower index is first. An IoU equal to the threshold does not suppress.

    Args:
        boxes: ``[n, 4]``, floating point, with inclusive ends.
        scores: ``[n]``, floating point.
        threshold: between 0 and 1.
        present: bool ``[n]``; an absent box is neither kept nor does it suppress. None: all are present. A box with a score
            of NaN or a coordinate that is not finite is absent.

    Returns:
        bool ``[n]``, in the order of the input.

    Raises:
        TypeError: ``boxes`` or ``scores`` is not floating point, or ``present`` not bool.
        ValueError: the shapes do not fit, or ``threshold`` is outside [0, 1].

    Source: maskrcnn-benchmark, ``csrc/cuda/nms.cu``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.nms import nms
        >>> boxes = jnp.array([[0.0, 0.0, 9.0, 9.0], [1.0, 0.0, 10.0, 9.0], [20.0, 0.0, 29.0, 9.0]])
        >>> nms(boxes, jnp.array([0.8, 0.9, 0.7]), 0.5).tolist()
        [False, True, True]
    """
    boxes = jax.lax.stop_gradient(as_boxes(boxes, "nms", ndim=2))
    scores = jax.lax.stop_gradient(jnp.asarray(scores))
    present = jnp.ones(scores.shape, bool) if present is None else jnp.asarray(present)
    _require(boxes, scores, threshold, present)
    if not len(boxes):
        return present
    threshold = threshold if isinstance(threshold, jax.core.Tracer) else float(threshold)
    return _nms(boxes, scores, present, threshold, _tile_size(len(boxes)))


# Compiled once per shape, also where the caller compiles nothing: a loop is traced again with every call otherwise.
@functools.partial(jax.jit, static_argnums=4)
def _nms(boxes: jax.Array, scores: jax.Array, present: jax.Array, threshold: float, tile: int) -> jax.Array:
    order, candidate = _by_falling_score(scores, present)
    kept = greedy(boxes[order], candidate, threshold, tile=tile)
    return jnp.zeros_like(kept).at[order].set(kept, unique_indices=True)


def _tile_size(number: int) -> int:
    return min(CPU_TILE if device_kind().platform == "cpu" else TILE, number)


def _by_falling_score(scores: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(order, present[order])`` of ``[n]`` scores, the lower index first in ties; absent and NaN ones are last.

    Those with a NaN are no longer present.
    """
    present = present & ~jnp.isnan(scores)
    keys = jnp.where(present, -scores, jnp.inf)
    _, order = jax.lax.sort((keys, jnp.arange(len(scores), dtype=jnp.int32)), num_keys=1, is_stable=True)
    return order, present[order]


def greedy(
    boxes: jax.Array,
    candidate: jax.Array,
    threshold: float,
    groups: jax.Array | None = None,
    limit: int | None = None,
    tile: int | None = None,
) -> jax.Array:
    """The kept ones of boxes that are sorted by falling score.

    Args:
        boxes: ``[n, 4]``, n > 0.
        candidate: bool ``[n]``; the others are neither kept nor suppress.
        threshold: an IoU above it suppresses.
        groups: int32 ``[n]``; boxes of different groups do not suppress each other. None: one group.
        limit: the search ends after the tile in which so many are kept; of the result only the first ``limit`` true
            entries are meaningful. None: to the end.
        tile: boxes per tile, n at most. None: by device.

    Returns:
        bool ``[n]``.
    """
    n = len(boxes)
    tile = _tile_size(n) if tile is None else tile
    padded = -(-n // tile) * tile
    candidate = candidate & jnp.isfinite(boxes).all(-1)
    columns = jnp.pad(boxes, ((0, padded - n), (0, 0))).T
    groups = jnp.zeros(n, jnp.int32) if groups is None else groups
    table = (columns, jnp.pad(groups, (0, padded - n)))
    candidate = jnp.pad(candidate, (0, padded - n))
    end = jnp.max(jnp.where(candidate, jnp.arange(padded, dtype=jnp.int32), -1)) // tile + 1
    # The list of what is kept: all of it at most, and with a limit that and one more tile.
    capacity = padded if limit is None else min(padded, -(-limit // tile) * tile + tile)
    earlier = jnp.tril(jnp.ones((tile, tile), bool), -1).T
    nowhere = jnp.broadcast_to(jnp.asarray(_NOWHERE, boxes.dtype)[:, None], (4, capacity))
    limit = n if limit is None else limit

    def overlap(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (iou_of_columns(a[0], b[0]) > threshold) & (a[1][:, None] == b[1][None, :])

    def more(state: tuple) -> jax.Array:
        index, count, _, _ = state
        return (index < end) & (count < limit)

    def step(state: tuple) -> tuple:
        index, count, listed, kept = state
        own = _tile(table, index, tile)
        alive = jax.lax.dynamic_slice_in_dim(candidate, index * tile, tile)

        def suppress(block: jax.Array, alive: jax.Array) -> jax.Array:
            return alive & ~jnp.any(overlap(_tile(listed, block, tile), own), 0)

        alive = jax.lax.fori_loop(0, (count + tile - 1) // tile, suppress, alive)
        alive = _settle(overlap(own, own) & earlier, alive)
        place = jnp.where(alive, count + jnp.cumsum(alive, dtype=jnp.int32) - 1, capacity)
        listed = (listed[0].at[:, place].set(own[0], mode="drop"), listed[1].at[place].set(own[1], mode="drop"))
        kept = jax.lax.dynamic_update_slice_in_dim(kept, alive, index * tile, 0)
        return index + 1, count + jnp.sum(alive, dtype=jnp.int32), listed, kept

    zero = jnp.zeros((), jnp.int32)
    start = (zero, zero, (nowhere, jnp.zeros(capacity, jnp.int32)), jnp.zeros(padded, bool))
    return jax.lax.while_loop(more, step, start)[3][:n]


def _tile(table: tuple[jax.Array, jax.Array], index: jax.Array, tile: int) -> tuple[jax.Array, jax.Array]:
    """Columns ``index * tile`` and following of boxes ``[4, n]`` and groups ``[n]``."""
    boxes, groups = table
    start = index * tile
    return jax.lax.dynamic_slice_in_dim(boxes, start, tile, 1), jax.lax.dynamic_slice_in_dim(groups, start, tile)


def _settle(suppresses: jax.Array, alive: jax.Array) -> jax.Array:
    """The solution of ``kept_j = alive_j and not any_i(kept_i and suppresses_ij)``, ``suppresses`` above the diagonal."""

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, _ = state
        return alive & ~jnp.any(suppresses & kept[:, None], 0), kept

    return jax.lax.while_loop(lambda state: jnp.any(state[0] != state[1]), step, step((alive, alive)))[0]


def _require(boxes: jax.Array, scores: jax.Array, threshold: float, present: jax.Array) -> None:
    if not jnp.issubdtype(scores.dtype, jnp.floating) or present.dtype != bool:
        raise TypeError(
            f"nms got scores of type {scores.dtype} and present of type {present.dtype}; it requires float and bool."
        )
    if scores.shape != boxes.shape[:1] or present.shape != boxes.shape[:1]:
        raise ValueError(
            f"nms got boxes of shape {boxes.shape}, scores of shape {scores.shape} and present of shape {present.shape}; "
            "it requires [n, 4], [n] and [n]. Use jax.vmap for a batch."
        )
    if not isinstance(threshold, jax.core.Tracer) and not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}; it must be between 0 and 1.")
