"""The samplers: exact counts, uniform choice, and independence of whatever stands beside the candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.anchors import LEVELS, anchor_ids
from gw_jax.detection.sampling import sample_indices, sample_masks

pytestmark = pytest.mark.usefixtures("strict", "quick")

KEY = jax.random.key(7)
masks = jax.jit(sample_masks, static_argnums=(3, 4))
indices = jax.jit(sample_indices, static_argnums=(3, 4))


def candidates(num_positive, num_negative, length=400):
    """Positives and negatives at random places among others that are neither."""
    kind = np.zeros(length, int)
    kind[:num_positive] = 1
    kind[num_positive : num_positive + num_negative] = 2
    kind = np.random.default_rng(0).permutation(kind)
    return kind == 1, kind == 2


@pytest.mark.parametrize(
    ("num_positive", "num_negative", "expected"),
    [(200, 200, (32, 96)), (20, 200, (20, 108)), (0, 200, (0, 128)), (200, 3, (32, 3)), (5, 7, (5, 7)), (0, 0, (0, 0))],
)
def test_counts(num_positive, num_negative, expected):
    positive, negative = candidates(num_positive, num_negative)
    sample = masks(positive, negative, KEY, 128, 0.25)
    assert (sample.positive.sum(), sample.negative.sum()) == expected
    assert not (sample.positive & ~positive).any()
    assert not (sample.negative & ~negative).any()

    index, sampled = indices(positive, negative, KEY, 128, 0.25)
    assert index.shape == sampled.shape == (128,)
    assert index.dtype == jnp.int32
    assert len(np.unique(index)) == 128
    first, last = expected[0], sum(expected)
    np.testing.assert_array_equal(sampled, np.arange(128) < last)
    np.testing.assert_array_equal(index[:first], np.flatnonzero(sample.positive))
    np.testing.assert_array_equal(index[first:last], np.flatnonzero(sample.negative))


def test_sample_larger_than_the_candidates():
    positive, negative = candidates(11, 50, 100)
    sample = masks(positive, negative, KEY, 1_000_000, 0.5)
    np.testing.assert_array_equal(sample.positive, positive)
    np.testing.assert_array_equal(sample.negative, negative)
    index, sampled = indices(positive, negative, KEY, 100_000, 0.25)
    np.testing.assert_array_equal(np.sort(index), np.arange(100))
    np.testing.assert_array_equal(np.sort(index[np.asarray(sampled)]), np.flatnonzero(positive | negative))


def test_extreme_fractions():
    positive, negative = candidates(100, 100)
    assert masks(positive, negative, KEY, 64, 0.0).positive.sum() == 0
    sample = masks(positive, negative, KEY, 64, 1.0)
    assert (sample.positive.sum(), sample.negative.sum()) == (64, 0)
    # The share is rounded down.
    assert masks(positive, negative, KEY, 7, 0.5).positive.sum() == 3


def test_uniform():
    """Chi-square of how often each candidate is chosen, and each pair of neighbours, over 4,000 keys."""
    positive, negative = candidates(12, 20, 40)
    keys = jax.random.split(jax.random.key(1), 4000)
    sample = jax.jit(jax.vmap(lambda key: sample_masks(positive, negative, key, 10, 0.4)))(keys)
    for mask, kind, chosen in ((sample.positive, positive, 4), (sample.negative, negative, 6)):
        drawn = np.asarray(mask)[:, kind]
        np.testing.assert_array_equal(drawn.sum(1), chosen)
        size = kind.sum()
        expected = len(keys) * chosen / size
        # Without replacement the counts vary less than independent ones: by (size - chosen) / (size - 1).
        statistic = ((drawn.sum(0) - expected) ** 2).sum() / (expected * (size - chosen) / (size - 1))
        degrees = size - 1
        assert degrees - 4 * np.sqrt(2 * degrees) < statistic < degrees + 4 * np.sqrt(2 * degrees)
        share = chosen * (chosen - 1) / (size * (size - 1))
        pairs = (drawn & np.roll(drawn, 1, 1)).mean()
        assert abs(pairs - share) < 5 * np.sqrt(share / drawn.size)
    # The choices of the two kinds are independent.
    together = (np.asarray(sample.positive)[:, positive][:, 0] & np.asarray(sample.negative)[:, negative][:, 0]).mean()
    assert abs(together - 4 / 12 * 6 / 20) < 5 * np.sqrt(0.1 * 0.9 / len(keys))


@pytest.mark.parametrize("typed", [True, False])
def test_padding_changes_nothing(typed):
    key = jax.random.key(3) if typed else jax.random.PRNGKey(3)
    positive, negative = candidates(60, 200)
    sample = masks(positive, negative, key, 64, 0.25)
    longer = masks(np.pad(positive, (0, 111)), np.pad(negative, (0, 111)), key, 64, 0.25)
    for alone, padded in zip(sample, longer, strict=True):
        np.testing.assert_array_equal(padded[:400], alone)
        assert not padded[400:].any()
    index, sampled = indices(positive, negative, key, 64, 0.25)
    longer_index, longer_sampled = indices(np.pad(positive, (0, 111)), np.pad(negative, (0, 111)), key, 64, 0.25)
    np.testing.assert_array_equal(longer_index, index)
    np.testing.assert_array_equal(longer_sampled, sampled)


def test_canvas_changes_nothing():
    """The anchors of an image are the same ones on a canvas of another shape, at other places of the array."""

    def choose(height, width):
        sides = [(level, -(-height // 2**i), -(-width // 2**i)) for i, level in enumerate(LEVELS[:2])]
        ids = np.concatenate([anchor_ids(h, w, level) for level, h, w in sides])
        exists = []
        for i, (_, h, w) in enumerate(sides):
            inside = (np.arange(h) < -(-8 // 2**i))[:, None] & (np.arange(w) < -(-12 // 2**i))
            exists.append(np.broadcast_to(inside[..., None], (h, w, 3)).reshape(-1))
        exists = np.concatenate(exists)
        sample = masks(exists & (ids % 5 == 0), exists & (ids % 5 == 1), KEY, 64, 0.5, ids)
        return set(ids[np.asarray(sample.positive)].tolist()), set(ids[np.asarray(sample.negative)].tolist())

    alone = choose(8, 12)
    assert (len(alone[0]), len(alone[1])) == (32, 32)
    assert choose(8, 20) == choose(16, 12) == alone


def test_another_key_is_another_choice():
    positive, negative = candidates(60, 200)
    one, other = (masks(positive, negative, jax.random.key(seed), 64, 0.25) for seed in (0, 1))
    assert (one.positive != other.positive).any()
    assert (one.negative != other.negative).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"positive": jnp.zeros(4)}, TypeError, "positive is of type float32"),
        ({"negative": jnp.zeros(5, bool)}, ValueError, r"\(4,\), \(5,\) and \(4,\)"),
        ({"positive": jnp.zeros((1, 4), bool)}, ValueError, "jax.vmap"),
        ({"ids": jnp.zeros(4)}, TypeError, "ids are of type float32"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": 2.5}, ValueError, "batch_size=2.5"),
        ({"positive_fraction": 1.5}, ValueError, "positive_fraction=1.5"),
    ],
)
def test_misuse(change, error, message):
    none = jnp.zeros(4, bool)
    arguments = {"positive": none, "negative": none, "key": KEY, "batch_size": 2, "positive_fraction": 0.5}
    for sample in (sample_masks, sample_indices):
        with pytest.raises(error, match=message):
            sample(**{**arguments, **change})
