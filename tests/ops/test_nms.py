"""Non-maximum suppression equals the greedy loop, box by box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.nms import greedy_loop
from gw_jax.ops import nms as module
from gw_jax.ops.nms import greedy, nms
from tests.detection import golden

CASES = [f"{kind}_{n}" for n in (40, 300, 1000) for kind in ("random", "clustered", "dense")] + [
    "exact_threshold",
    "single",
]
ROWS = 1000
compiled = jax.jit(nms)


def run(boxes, scores, threshold, present=None):
    """What is kept, by the one program that most tests share: absent rows are appended."""
    n = len(scores)
    present = np.pad(np.ones(n, bool) if present is None else present, (0, ROWS - n))
    kept = compiled(np.pad(boxes, ((0, ROWS - n), (0, 0))), np.pad(scores, (0, ROWS - n)), threshold, present)
    assert not kept[n:].any()
    return np.asarray(kept[:n])


def loop(boxes, scores, threshold, present=None):
    """The definition."""
    rows = np.arange(len(scores)) if present is None else np.flatnonzero(present)
    kept = np.zeros(len(scores), bool)
    kept[rows[greedy_loop(boxes[rows], scores[rows], threshold)]] = True
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
    kept = np.flatnonzero(run(arrays["boxes"], arrays["scores"], threshold))
    np.testing.assert_array_equal(kept, arrays[f"keep_{threshold}"])


@pytest.mark.parametrize("tile", [7, pytest.param(256, marks=pytest.mark.slow)])
def test_every_tile_gives_the_same(tile, monkeypatch, quick_compilation):
    monkeypatch.setattr(module, "CPU_TILE", tile)
    boxes, scores = clusters(300)
    with quick_compilation():
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
    kept = run(boxes, scores, 0.5, present)
    np.testing.assert_array_equal(kept, loop(boxes, scores, 0.5, present))
    np.testing.assert_array_equal(run(boxes, scores, 0.5, np.zeros(200, bool)), False)
    # More of them change nothing, wherever they are.
    more = np.r_[np.zeros(37, bool), present, np.zeros(300, bool)]
    padded = np.pad(boxes, ((37, 300), (0, 0))), np.pad(scores, (37, 300), constant_values=2.0)
    np.testing.assert_array_equal(run(*padded, 0.5, more)[37:237], kept)


def test_what_is_not_finite_is_absent():
    boxes, scores = (np.array(a) for a in clusters(100))
    present = np.ones(100, bool)
    broken = [np.argmax(scores), 5, 50, 51]
    scores[broken[0]], boxes[5, 2], boxes[50, 0], boxes[51, 3] = np.nan, np.nan, -np.inf, np.inf
    present[broken] = False
    np.testing.assert_array_equal(run(boxes, scores, 0.5), loop(boxes, scores, 0.5, present))
    # Infinite scores are scores.
    np.testing.assert_array_equal(run(boxes[:2], np.array([-np.inf, np.inf], np.float32), 1.0), [True, True])


def test_no_boxes():
    assert nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5).shape == (0,)


@pytest.mark.slow
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


def test_differentiation_passes_through():
    """A loss may use the kept boxes: the choice has no derivative, and none is asked of the loop."""
    boxes, scores = clusters(20)
    gradient = jax.jit(jax.grad(lambda boxes: jnp.where(nms(boxes, scores, 0.5)[:, None], boxes, 0).sum()))(boxes)
    np.testing.assert_array_equal(gradient[:, 0], loop(boxes, scores, 0.5))


def test_groups_and_limit(quick_compilation):
    boxes, scores = clusters(300)
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order], scores[order]
    groups = np.random.default_rng(2).integers(0, 3, 300).astype(np.int32)
    expected = np.zeros(300, bool)
    for group in range(3):
        expected |= loop(boxes, scores, 0.5, groups == group)
    candidate = np.ones(300, bool)
    limited = jax.jit(greedy, static_argnums=(2, 4))
    for limit in (10, 1000):
        with quick_compilation():
            kept = limited(boxes, candidate, 0.5, groups, limit)
        np.testing.assert_array_equal(np.flatnonzero(kept)[:limit], np.flatnonzero(expected)[:limit])


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
