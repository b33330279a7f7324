"""Proposals against the golden data, and what a canvas, other images and broken numbers must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.anchors import LEVELS, STRIDES
from gw_jax.detection.proposals import propose
from tests.detection import golden

pytestmark = pytest.mark.usefixtures("strict", "quick")

SMALL = {"pre_nms_top_n": 200, "post_nms_top_n": 100, "num_proposals": 150}
run = jax.jit(propose, static_argnames=("pre_nms_top_n", "post_nms_top_n", "num_proposals", "pool_images", "nms_threshold"))


def outputs(dtype=np.float32):
    """The stored outputs of the region proposal network, and the size of the image."""
    arrays = golden.load("ops/rpn_and_losses")
    logits, deltas = (
        {level: golden.nhwc(arrays[f"{kind}_{level}_nchw"]).astype(dtype) for level in LEVELS}
        for kind in ("logits", "deltas")
    )
    return logits, deltas, arrays["image_hw"]


def as_batch(sizes):
    return jnp.asarray(np.array([golden.aligned(size) for size in sizes], np.int32)), jnp.asarray(np.array(sizes, np.int32))


def on_canvas(maps, height, width, fill):
    """Feature maps at the top left of those of a canvas, the rest ``fill``."""
    placed = {}
    for level, a in maps.items():
        shape = -(-height // STRIDES[level]), -(-width // STRIDES[level])
        placed[level] = np.full((1, *shape, a.shape[-1]), fill, a.dtype)
        placed[level][:, : a.shape[1], : a.shape[2]] = a
    return placed


def rows(proposals, image=0):
    """Present rows ``[x1 y1 x2 y2 score]``."""
    present = np.asarray(proposals.present[image])
    return np.concatenate([proposals.boxes[image], proposals.scores[image][:, None]], 1)[present]


def assert_same_set(found, expected, atol=1e-3):
    """Rows are the same, whatever the order of equal scores."""
    assert found.shape == expected.shape
    distance = np.abs(found[:, None] - expected[None]).max(-1)
    assert (distance.min(0) < atol).all()
    assert (distance.min(1) < atol).all()


def golden_rows(case):
    arrays = golden.part(golden.load("ops/rpn_and_losses"), case)
    return np.concatenate([arrays["boxes"], arrays["scores"][:, None]], 1)


def test_golden():
    logits, deltas, size = outputs()
    found = run(logits, deltas, *as_batch([size]))
    assert found.boxes.dtype == found.scores.dtype == jnp.float32
    assert found.boxes.shape == (1, 1000, 4)
    assert_same_set(rows(found), golden_rows("default_test"))
    assert (np.diff(found.scores[0]) <= 0).all()


@pytest.mark.slow
def test_float64(float64):
    logits, deltas, size = outputs(np.float64)
    found = run(logits, deltas, *as_batch([size]), **SMALL)
    assert found.boxes.dtype == found.scores.dtype == jnp.float64
    assert_same_set(rows(found), golden_rows("small"))


def on_canvases(images, fill=0.0):
    """``(logits, deltas)`` of images as a batch on a larger canvas."""
    placed = [[on_canvas(maps, 320, 352, fill) for maps in image] for image in images]
    return [{level: np.concatenate([image[i][level] for image in placed]) for level in LEVELS} for i in range(2)]


@pytest.mark.parametrize("fill", [50.0, np.nan])
def test_canvas_and_other_images_change_nothing(fill):
    """Anchors in the padding have the highest logits, or none; a second image has other proposals."""
    logits, deltas, size = outputs()
    second = [{level: -a[:, ::-1] for level, a in maps.items()} for maps in (logits, deltas)]
    found = run(*on_canvases([(logits, deltas), second], fill), *as_batch([size, size]), **SMALL)
    assert_same_set(rows(found), golden_rows("small"))
    # The training mode has the same boxes, followed by the ground truth.
    arrays = golden.load("ops/rpn_and_losses")
    assert_same_set(rows(found)[:, :4], arrays["train_small.boxes"][: -len(arrays["gt_boxes"])])
    assert found.present[1].any()
    assert (found.boxes[1] != found.boxes[0]).any()


@pytest.mark.slow
def test_canvas_changes_no_bit():
    logits, deltas, size = outputs()
    alone = run(logits, deltas, *as_batch([size]), **SMALL)
    found = run(*on_canvases([(logits, deltas)] * 2, 50.0), *as_batch([size, size]), **SMALL)
    for together, single in zip(found, alone, strict=True):
        np.testing.assert_array_equal(together[0], single[0])


@pytest.mark.slow
def test_pooled_over_images():
    """The best of each pair of images together: one of the two may have most."""
    logits, deltas, size = outputs()
    images = [({level: a + shift for level, a in logits.items()}, deltas) for shift in (0.0, -0.02)]
    every = run(*on_canvases(images), *as_batch([size] * 2), **SMALL)
    options = {**SMALL, "num_proposals": 60, "pool_images": 2}
    pooled = run(*on_canvases([*images, images[0], images[0]]), *as_batch([size] * 4), **options)
    assert pooled.boxes.shape == (4, 120, 4)
    counts = np.asarray(pooled.present.sum(1))
    assert counts[0] + counts[1] == 120
    assert counts[0] > counts[1] > 0
    for image in range(2):
        np.testing.assert_array_equal(rows(pooled, image), rows(every, image)[: counts[image]])
    limit = min(rows(pooled, image)[-1, 4] for image in range(2))
    assert (np.asarray(every.scores) > limit).sum() < 120
    # The second pair is apart from the first. Its images are the same, so the last of its proposals are in ties.
    assert counts[2:].sum() == 120
    assert abs(counts[2] - counts[3]) <= 2


def tiny(n=1):
    sides = {"P2": 8, "P3": 4, "P4": 2, "P5": 1, "P6": 1}
    rng = np.random.default_rng(0)
    maps = ({k: rng.normal(size=(n, s, s, c)).astype(np.float32) for k, s in sides.items()} for c in (3, 12))
    return (*maps, *as_batch([(32, 32)] * n))


def test_absent_rows_are_zero_and_broken_numbers_take_no_part():
    logits, deltas, valid, sizes = tiny(2)
    before = run(logits, deltas, valid, sizes)
    number = before.present[0].sum()
    assert before.boxes.shape == (2, 1000, 4)
    assert 0 < number < 1000

    for maps in (logits, deltas):
        maps["P2"][0, :4] = np.nan
    deltas["P3"][0, 0, 0] = np.inf
    after = run(logits, deltas, valid * jnp.array([[1], [0]], jnp.int32), sizes)
    assert after.present.any(1).tolist() == [True, False]
    assert after.present[0].sum() < number
    for found in (before, after):
        absent = ~np.asarray(found.present)
        assert absent.any()
        assert not np.asarray(found.boxes)[absent].any()
        assert not np.asarray(found.scores)[absent].any()
        assert np.isfinite(found.boxes).all()
        assert np.isfinite(found.scores).all()
    # With nothing left there are no proposals.
    nothing = {level: np.full_like(a, np.nan) for level, a in logits.items()}
    assert not run(nothing, deltas, valid, sizes).present.any()


@pytest.mark.slow
def test_no_gradient():
    logits, deltas, valid, sizes = tiny()
    gradient = jax.jit(jax.grad(lambda deltas: propose(logits, deltas, valid, sizes).boxes.sum()))(deltas)
    assert not any(np.asarray(a).any() for a in gradient.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": {}}, "propose got logits of ; it requires P2, P3, P4, P5, P6"),
        ({"valid": jnp.zeros((2, 2), jnp.int32)}, r"valid of shape \(2, 2\)"),
        ({"pool_images": 2}, "pool_images=2 does not divide the batch of 1"),
        ({"num_proposals": 0}, "num_proposals=0"),
        ({"nms_threshold": 70}, "nms_threshold=70"),
    ],
)
def test_misuse(change, message):
    logits, deltas, valid, sizes = tiny()
    arguments = {"logits": logits, "deltas": deltas, "valid": valid, "sizes": sizes}
    with pytest.raises(ValueError, match=message):
        propose(**{**arguments, **change})
    with pytest.raises(ValueError, match=r"P3 logits of shape \(1, 4, 4, 3\) and deltas of shape \(1, 4, 4, 3\)"):
        propose(logits, {**deltas, "P3": logits["P3"]}, valid, sizes)
