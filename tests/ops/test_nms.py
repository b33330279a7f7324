"""Non-maximum suppression equals the greedy loop, box by box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.ops import nms as module
from gw_jax.ops.nms import greedy, nms
from tests.detection import golden

CASES = [f"{kind}_{n}" for n in (40, 300, 1000) for kind in ("random", "clustered", "dense")] + [
    "exact_threshold",
    "single",
]
run = jax.jit(nms, static_argnums=2)


def loop(boxes, scores, threshold, present=None):
    """The definition."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    kept = np.zeros(len(boxes), bool)
    left = np.argsort(-scores, kind="stable")
    left = left if present is None else left[present[left]]
    while len(left):
        best, left = left[0], left[1:]
        kept[best] = True
        width = np.maximum(np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left]) + 1, 0)
        height = np.maximum(np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left]) + 1, 0)
        intersection = width * height
        left = left[intersection / (areas[best] + areas[left] - intersection) <= boxes.dtype.type(threshold)]
    return kept


def clusters(n, seed=0, dtype=np.float32):
    """``n`` boxes around a tenth as many centres, some on the same place, on a grid of quarters of a pixel."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 400, (n // 10, 2))[rng.integers(0, n // 10, n)] + rng.normal(0, 10, (n, 2))
    side = 60 * np.exp(rng.normal(0, 0.3, (n, 2)))
    boxes = np.round(np.concatenate([centre - side / 2, centre + side / 2], 1) * 4) / 4
    return boxes.astype(dtype), rng.permutation(n).astype(dtype) / n


def chain(n):
    """Boxes by falling score, each overlapping its neighbours only, with an IoU of 6 / 16: every second one is kept."""
    x = 5.0 * np.arange(n)
    return np.stack([x, 0 * x, x + 10, 0 * x], 1).astype(np.float32), np.linspace(1, 0.5, n).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_golden(case, threshold):
    arrays = golden.part(golden.load("ops/nms"), case)
    # Of one length, so that all of them share two programs.
    n = len(arrays["scores"])
    boxes, scores = np.pad(arrays["boxes"], ((0, 1000 - n), (0, 0))), np.pad(arrays["scores"], (0, 1000 - n))
    kept = np.flatnonzero(run(boxes, scores, threshold, np.arange(1000) < n))
    np.testing.assert_array_equal(kept, arrays[f"keep_{threshold}"])


@pytest.mark.parametrize("tile", [1, 7, 64, 256])
def test_every_tile_gives_the_same(tile, monkeypatch):
    monkeypatch.setattr(module, "CPU_TILE", tile)
    monkeypatch.setattr(module, "TILE", tile)
    boxes, scores = clusters(300)
    kept = jax.jit(lambda boxes, scores: nms(boxes, scores, 0.5))(boxes, scores)
    np.testing.assert_array_equal(kept, loop(boxes, scores, 0.5))


def test_chain():
    boxes, scores = chain(700)
    np.testing.assert_array_equal(run(boxes, scores, 0.3), np.arange(700) % 2 == 0)
    np.testing.assert_array_equal(run(boxes, scores, 0.4), True)


def test_lower_index_first_in_ties():
    boxes = np.tile(np.array([[0, 0, 9, 9], [1, 0, 10, 9]], np.float32), (3, 1))
    np.testing.assert_array_equal(run(boxes, np.ones(6, np.float32), 0.5), np.arange(6) == 0)
    # 0 and -0 are the same score.
    np.testing.assert_array_equal(run(boxes[:2], np.array([-0.0, 0.0], np.float32), 0.5), [True, False])


def test_absent_boxes_neither_suppress_nor_are_kept():
    boxes, scores = clusters(200)
    present = np.random.default_rng(1).uniform(size=200) < 0.5
    kept = np.asarray(run(boxes, scores, 0.5, present))
    np.testing.assert_array_equal(kept, loop(boxes, scores, 0.5, present))
    np.testing.assert_array_equal(run(boxes, scores, 0.5, np.zeros(200, bool)), False)
    # More of them change nothing, wherever they are.
    more = np.r_[np.zeros(37, bool), present, np.zeros(300, bool)]
    padded = np.pad(boxes, ((37, 300), (0, 0))), np.pad(scores, (37, 300), constant_values=2.0)
    np.testing.assert_array_equal(np.asarray(run(*padded, 0.5, more))[37:237], kept)


def test_what_is_not_finite_is_absent():
    boxes, scores = (np.array(a) for a in clusters(100))
    present = np.ones(100, bool)
    broken = [np.argmax(scores), 5, 50, 51]
    scores[broken[0]], boxes[5, 2], boxes[50, 0], boxes[51, 3] = np.nan, np.nan, -np.inf, np.inf
    present[broken] = False
    np.testing.assert_array_equal(run(boxes, scores, 0.5), loop(boxes, scores, 0.5, present))
    # Infinite scores are scores.
    np.testing.assert_array_equal(run(boxes[:2], np.array([-np.inf, np.inf], np.float32), 1.0), [True, True])


@pytest.mark.parametrize("n", [0, 1])
def test_few_boxes(n):
    assert run(np.zeros((n, 4), np.float32), np.zeros(n, np.float32), 0.5).tolist() == [True] * n


def test_batches():
    batch = [clusters(120, seed) for seed in range(3)]
    boxes, scores = (np.stack(a) for a in zip(*batch, strict=True))
    present = np.arange(120) < np.array([[120], [0], [70]])
    kept = jax.jit(jax.vmap(lambda *args: nms(*args[:2], 0.5, args[2])))(boxes, scores, present)
    for row, arguments in zip(kept, zip(boxes, scores, present, strict=True), strict=True):
        np.testing.assert_array_equal(row, loop(*arguments[:2], 0.5, arguments[2]))


def test_float64(float64):
    # Differences that float32 does not see decide: the order of two scores, and an IoU just above the threshold.
    pair = np.array([[0, 0, 9, 9], [0, 0, 9, 4.0 + 1e-12]])
    np.testing.assert_array_equal(run(pair, np.array([1.0, 1.0 + 1e-12]), 0.5), [False, True])
    np.testing.assert_array_equal(run(np.round(pair), np.ones(2), 0.5), [True, True])


def test_threshold_may_be_traced():
    boxes, scores = clusters(20)
    traced = jax.jit(nms)
    for threshold in (0.3, 0.8):
        np.testing.assert_array_equal(traced(boxes, scores, threshold), loop(boxes, scores, threshold))


def test_differentiation_passes_through():
    """A loss may use the kept boxes: the choice has no derivative, and none is asked of the loop."""
    boxes, scores = clusters(20)
    gradient = jax.grad(lambda boxes: jnp.where(nms(boxes, scores, 0.5)[:, None], boxes, 0).sum())(jnp.asarray(boxes))
    np.testing.assert_array_equal(gradient[:, 0], loop(boxes, scores, 0.5))


def test_groups_and_limit():
    boxes, scores = clusters(300)
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order], scores[order]
    groups = np.random.default_rng(2).integers(0, 3, 300).astype(np.int32)
    expected = np.zeros(300, bool)
    for group in range(3):
        expected |= loop(boxes, scores, 0.5, groups == group)
    candidate = np.ones(300, bool)
    limited = jax.jit(greedy, static_argnums=(2, 4))
    for limit in (1, 65, 1000):
        first = np.flatnonzero(limited(boxes, candidate, 0.5, groups, limit))[:limit]
        np.testing.assert_array_equal(first, np.flatnonzero(expected)[:limit])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((jnp.zeros((3, 5)), jnp.zeros(3), 0.5), ValueError, r"\(3, 5\)"),
        ((jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)), 0.5), ValueError, "2 axes"),
        ((jnp.zeros((3, 4)), jnp.zeros(2), 0.5), ValueError, r"scores of shape \(2,\)"),
        ((jnp.zeros((3, 4)), jnp.zeros(3), 0.5, jnp.ones(2, bool)), ValueError, r"present of shape \(2,\)"),
        ((jnp.zeros((3, 4)), jnp.zeros(3, int), 0.5), TypeError, "scores of type int32"),
        ((jnp.zeros((3, 4)), jnp.zeros(3), 0.5, jnp.ones(3)), TypeError, "present of type float32"),
        ((jnp.zeros((3, 4)), jnp.zeros(3), 50), ValueError, "threshold=50"),
    ],
)
def test_misuse(arguments, error, message):
    with pytest.raises(error, match=message):
        nms(*arguments)
