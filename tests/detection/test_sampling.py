"""The samplers: exact counts, uniform choice, and independence of whatever stands beside the candidates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.anchors import anchor_ids
from gw_jax.detection.sampling import sample_indices, sample_masks

pytestmark = pytest.mark.usefixtures("strict", "quick")

KEY = jax.random.key(7)


@functools.partial(jax.jit, static_argnums=(3, 4))
def run(*arguments):
    """Both ways in one program."""
    return sample_masks(*arguments), sample_indices(*arguments)


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
    sample, (index, sampled) = run(positive, negative, KEY, 128, 0.25)
    assert (sample.positive.sum(), sample.negative.sum()) == expected
    assert not (sample.positive & ~positive).any()
    assert not (sample.negative & ~negative).any()

    assert index.shape == sampled.shape == (128,)
    assert index.dtype == jnp.int32
    assert len(np.unique(index)) == 128
    first, last = expected[0], sum(expected)
    np.testing.assert_array_equal(sampled, np.arange(128) < last)
    np.testing.assert_array_equal(index[:first], np.flatnonzero(sample.positive))
    np.testing.assert_array_equal(index[first:last], np.flatnonzero(sample.negative))


def test_sample_larger_than_the_candidates():
    positive, negative = candidates(11, 50, 100)
    sample, (index, sampled) = run(positive, negative, KEY, 1_000_000, 0.25)
    np.testing.assert_array_equal(sample.positive, positive)
    np.testing.assert_array_equal(sample.negative, negative)
    np.testing.assert_array_equal(np.sort(index), np.arange(100))
    np.testing.assert_array_equal(np.sort(index[np.asarray(sampled)]), np.flatnonzero(positive | negative))


def test_extreme_fractions():
    positive, negative = candidates(100, 100)

    @jax.jit
    def counts(key):
        samples = [
            sample_masks(positive, negative, key, size, fraction) for size, fraction in ((64, 0.0), (64, 1.0), (7, 0.5))
        ]
        return [(sample.positive.sum(), sample.negative.sum()) for sample in samples]

    assert counts(KEY) == [(0, 64), (64, 0), (3, 4)]  # The share is rounded down.


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


def test_padding_changes_nothing():
    """Nor does the old kind of keys."""
    positive, negative = candidates(60, 200)
    sample, (index, sampled) = run(positive, negative, KEY, 128, 0.25)
    longer = np.pad(positive, (0, 111)), np.pad(negative, (0, 111))
    padded, (longer_index, longer_sampled) = run(*longer, jax.random.PRNGKey(7), 128, 0.25)
    for alone, among_others in zip(sample, padded, strict=True):
        np.testing.assert_array_equal(among_others[:400], alone)
        assert not among_others[400:].any()
    np.testing.assert_array_equal(longer_index, index)
    np.testing.assert_array_equal(longer_sampled, sampled)


def test_canvas_changes_nothing():
    """The anchors of an image are the same ones on a canvas of another shape, at other places of the array."""

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def choose(height, width):
        ids, exists = [], []
        for scale, level in ((1, "P2"), (2, "P3")):
            h, w = height // scale, width // scale
            inside = (jnp.arange(h) < 8 // scale)[:, None] & (jnp.arange(w) < 12 // scale)[None, :]
            exists.append(jnp.repeat(inside.reshape(-1), 3))
            ids.append(anchor_ids(h, w, level))
        ids, exists = jnp.concatenate(ids), jnp.concatenate(exists)
        return ids, sample_masks(exists & (ids % 3 == 0), exists & (ids % 3 == 1), KEY, 40, 0.5, ids)

    def chosen(height, width):
        ids, sample = choose(height, width)
        return [set(np.asarray(ids)[np.asarray(mask)].tolist()) for mask in sample]

    alone = chosen(8, 12)
    assert [len(ids) for ids in alone] == [20, 20]
    assert chosen(16, 20) == alone


def test_another_key_is_another_choice():
    positive, negative = candidates(60, 200)
    one, other = (run(positive, negative, jax.random.key(seed), 128, 0.25)[0] for seed in (0, 1))
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
