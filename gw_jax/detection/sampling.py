"""Random choice of boxes for a loss: a fixed share of positives at most, filled up with negatives.

The random number of a candidate depends on the key and the candidate's id only, never on how many others there are. So a
larger canvas, more padding or another batch leaves the choice as it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gw_jax.ops.checks import require_integer


class Sample(NamedTuple):
    """The chosen candidates as bool masks ``[k]``."""

    positive: jax.Array
    negative: jax.Array


class IndexedSample(NamedTuple):
    """The chosen candidates as int32 indices ``[s]``, and bool ``[s]``, false for the rest of the rows."""

    indices: jax.Array
    sampled: jax.Array


def sample_masks(
    positive: ArrayLike,
    negative: ArrayLike,
    key: jax.Array,
    batch_size: int,
    positive_fraction: float,
    ids: ArrayLike | None = None,
) -> Sample:
    """Chooses positives and negatives without replacement, each set of a size with the same probability.

    ``p = min(positives, floor(batch_size * positive_fraction))`` positives, and ``min(negatives, batch_size - p)`` of the
    negatives.

    Args:
        positive: bool ``[k]``, the candidates of the one kind.
        negative: bool ``[k]``, of the other; a candidate that is neither is never chosen.
        key: of ``jax.random``; another one per image.
        batch_size: the size of the sample, which may exceed the number of candidates.
        positive_fraction: the largest share of positives, between 0 and 1.
        ids: int32 ``[k]``, different for all candidates; on them and on the key depends the choice. None: 0 to k - 1.

    Returns:
        The masks of the chosen positives and negatives.

    Raises:
        TypeError: a mask is not bool or ``ids`` not int32.
        ValueError: the shapes differ, ``batch_size`` is no positive integer or ``positive_fraction`` outside [0, 1].

    Source: maskrcnn-benchmark, ``BalancedPositiveNegativeSampler``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from gw_jax.detection.sampling import sample_masks
        >>> positive = jnp.arange(100) < 10
        >>> sample = sample_masks(positive, ~positive, jax.random.key(0), 8, 0.5)
        >>> int(sample.positive.sum()), int(sample.negative.sum())
        (4, 4)
    """
    positive, negative, ids = _require(positive, negative, batch_size, positive_fraction, ids)
    most = min(int(batch_size * positive_fraction), len(positive))
    number = _random_numbers(key, ids)
    num_positive = jnp.minimum(jnp.sum(positive, dtype=jnp.int32), most)
    return Sample(
        _first(number, positive, num_positive, most),
        _first(number, negative, batch_size - num_positive, min(batch_size, len(positive))),
    )


def sample_indices(
    positive: ArrayLike,
    negative: ArrayLike,
    key: jax.Array,
    batch_size: int,
    positive_fraction: float,
    ids: ArrayLike | None = None,
) -> IndexedSample:
    """The choice of :func:`sample_masks` as indices: positives first, then negatives, then rows without a candidate.

    Args:
        positive: bool ``[k]``, the candidates of the one kind.
        negative: bool ``[k]``, of the other; a candidate that is neither is never chosen.
        key: of ``jax.random``; another one per image.
        batch_size: the size of the sample, which may exceed the number of candidates.
        positive_fraction: the largest share of positives, between 0 and 1.
        ids: int32 ``[k]``, different for all candidates; on them and on the key depends the choice. None: 0 to k - 1.

    Returns:
        Indices of ``s = min(batch_size, k)`` different candidates, by rising index within each kind, and which of them are
        part of the sample.

    Raises:
        TypeError: a mask is not bool or ``ids`` not int32.
        ValueError: the shapes differ, ``batch_size`` is no positive integer or ``positive_fraction`` outside [0, 1].

    Source: maskrcnn-benchmark, ``BalancedPositiveNegativeSampler``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from gw_jax.detection.sampling import sample_indices
        >>> positive = jnp.array([False, True, False, True])
        >>> indices, sampled = sample_indices(positive, jnp.array([True, False, False, False]), jax.random.key(0), 8, 0.5)
        >>> indices.tolist(), sampled.tolist()
        ([1, 3, 0, 2], [True, True, True, False])
    """
    sample = sample_masks(positive, negative, key, batch_size, positive_fraction, ids)
    rank = jnp.where(sample.positive, jnp.int32(2), sample.negative.astype(jnp.int32))
    rank, indices = jax.lax.top_k(rank, min(batch_size, len(rank)))  # The lower index first in ties.
    return IndexedSample(indices.astype(jnp.int32), rank > 0)


def _random_numbers(key: jax.Array, ids: jax.Array) -> jax.Array:
    """int32 ``[k]``, uniform on 0 .. 2^31 - 1: the hash of key and id that makes new keys in ``jax.random``."""
    folded = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    typed = jnp.issubdtype(folded.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(folded) if typed else folded
    return (words[..., 0] >> 1).astype(jnp.int32)


def _first(number: jax.Array, eligible: jax.Array, count: jax.Array, most: int) -> jax.Array:
    """The mask of the ``count`` eligible ones of largest number, ``most`` of them at most."""
    if not most:
        return jnp.zeros_like(eligible)
    value, indices = jax.lax.top_k(jnp.where(eligible, number, -1), most)
    chosen = (value >= 0) & (jnp.arange(most, dtype=jnp.int32) < count)
    return jnp.zeros_like(eligible).at[indices].set(chosen, unique_indices=True)


def _require(
    positive: ArrayLike, negative: ArrayLike, batch_size: int, positive_fraction: float, ids: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    positive, negative = jnp.asarray(positive), jnp.asarray(negative)
    if positive.dtype != bool or negative.dtype != bool:
        raise TypeError(f"positive is of type {positive.dtype} and negative of type {negative.dtype}; both must be bool.")
    ids = jnp.arange(positive.size, dtype=jnp.int32) if ids is None else jnp.asarray(ids)
    if ids.dtype != jnp.int32:
        raise TypeError(f"ids are of type {ids.dtype}; they must be int32.")
    if positive.ndim != 1 or not positive.shape == negative.shape == ids.shape:
        raise ValueError(
            f"positive, negative and ids have the shapes {positive.shape}, {negative.shape} and {ids.shape}; all must be "
            "[k]. Use jax.vmap for a batch."
        )
    require_integer("batch_size", batch_size, 1)
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction={positive_fraction}; it must be between 0 and 1.")
    return positive, negative, ids
