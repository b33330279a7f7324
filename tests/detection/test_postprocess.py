"""Detections against the golden data, and against suppression class by class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.nms import greedy_loop
from gw_jax.detection.postprocess import postprocess
from gw_jax.ops.boxes import clip, decode
from tests.detection import golden

pytestmark = pytest.mark.usefixtures("strict", "quick")

run = jax.jit(postprocess, static_argnames=("score_threshold", "nms_threshold", "max_detections"))


def case(name):
    arrays = golden.part(golden.load("ops/box_postprocess"), name)
    inputs = tuple(arrays[key] for key in ("class_logits", "box_deltas", "proposals"))
    return arrays, inputs, tuple(arrays["image_wh"][::-1])


def batch(inputs, sizes, rows=300):
    """Images as a batch, each padded to ``rows`` proposals whose numbers would be detections."""
    logits, deltas, boxes, present = [], [], [], []
    for image_logits, image_deltas, image_boxes in inputs:
        missing = rows - len(image_logits)
        filler = np.zeros((missing, image_logits.shape[1]), np.float32)
        filler[:, 1] = 50
        logits.append(np.concatenate([image_logits, filler]))
        deltas.append(np.pad(image_deltas, ((0, missing), (0, 0)), constant_values=np.nan))
        boxes.append(np.pad(image_boxes, ((0, missing), (0, 0)), constant_values=7))
        present.append(np.arange(rows) < len(image_logits))
    sizes = np.array(sizes, np.int32)
    return tuple(jnp.asarray(a) for a in (np.stack(logits), np.stack(deltas), np.stack(boxes), np.stack(present), sizes))


def assert_golden(found, image, arrays):
    boxes, scores, labels = arrays["boxes"], arrays["scores"], arrays["labels"]
    if len(scores) > arrays["max_detections"]:
        # The best of them, the lower index first.
        best = np.sort(np.argsort(-scores, kind="stable")[: arrays["max_detections"]])
        boxes, scores, labels = boxes[best], scores[best], labels[best]
    present = np.asarray(found.present[image])
    np.testing.assert_array_equal(present, np.arange(len(present)) < len(scores))
    np.testing.assert_array_equal(found.labels[image][present], labels)
    np.testing.assert_allclose(found.scores[image][present], scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes[image][present], boxes, atol=1e-3)
    for values in found[:3]:
        assert not np.asarray(values[image])[~present].any()


def test_golden():
    """Two images in a batch."""
    arrays, inputs, sizes = zip(*(case(name) for name in ("few", "many")), strict=True)
    found = run(*batch(inputs, sizes))
    for image in range(2):
        assert_golden(found, image, arrays[image])


def test_golden_ties():
    arrays, inputs, size = case("ties")
    assert len(arrays["scores"]) > arrays["max_detections"]
    assert_golden(run(*batch([inputs], [size]), max_detections=int(arrays["max_detections"])), 0, arrays)


@pytest.mark.slow
def test_batch_mates_change_no_bit():
    images, sizes = zip(*[case(name)[1:] for name in ("few", "many", "ties")], strict=True)
    together = run(*batch(images, sizes))
    for i, (image, size) in enumerate(zip(images, sizes, strict=True)):
        alone = run(*batch([image], [size], rows=340))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[i], b[0])


def class_by_class(logits, deltas, boxes, size, score_threshold, max_detections):
    """The definition: suppression of each class for itself, then the best of all."""
    scores = np.asarray(jax.nn.softmax(logits, -1))
    decoded = clip(decode(deltas, boxes, (10, 10, 5, 5)).reshape(-1, 4), size).reshape(len(boxes), -1, 4)
    decoded, found = np.asarray(decoded), []
    for label in range(1, scores.shape[1]):
        candidates = np.flatnonzero(scores[:, label] > score_threshold)
        kept = candidates[greedy_loop(decoded[candidates, label], scores[candidates, label], 0.5)]
        found += [(label, scores[i, label], decoded[i, label]) for i in kept]
    best = np.sort(np.argsort([-score for _, score, _ in found], kind="stable")[:max_detections])
    return [found[i] for i in best]


@pytest.mark.parametrize(
    ("score_threshold", "max_detections"),
    [(0.05, 100), pytest.param(0.05, 1000, marks=pytest.mark.slow), pytest.param(0.0, 20, marks=pytest.mark.slow)],
)
def test_equals_suppression_class_by_class(score_threshold, max_detections):
    """With many candidates of many classes on few places, more than a tile of them, and many equal scores."""
    rng = np.random.default_rng(0)
    k, num_classes, size = 300, 81, (100, 100)
    corner = rng.uniform(0, 60, (6, 2))[rng.integers(0, 6, k)] + rng.normal(0, 3, (k, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(25, 35, (k, 2))], 1).astype(np.float32)
    logits = np.tile(rng.normal(0, 3, (k // 2, num_classes)).astype(np.float32), (2, 1))
    deltas = (0.5 * rng.normal(size=(k, 4 * num_classes))).astype(np.float32)
    options = {"score_threshold": score_threshold, "max_detections": max_detections}
    found = run(*batch([(logits, deltas, boxes)] * 2, [size] * 2), **options)
    expected = class_by_class(logits, deltas, boxes, size, **options)
    present = np.asarray(found.present[0])
    assert present.sum() == len(expected)
    assert len({float(score) for _, score, _ in expected}) < len(expected)
    labels, scores, boxes = (np.stack(values) for values in zip(*expected, strict=True))
    np.testing.assert_array_equal(found.labels[0][present], labels)
    np.testing.assert_allclose(found.scores[0][present], scores, rtol=1e-6)
    np.testing.assert_allclose(found.boxes[0][present], boxes, atol=1e-4)


def test_no_proposals():
    arrays = jnp.zeros((2, 0, 3)), jnp.zeros((2, 0, 12)), jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), bool)
    found = run(*arrays, jnp.full((2, 2), 32), max_detections=7)
    assert found.boxes.shape == (2, 7, 4)
    assert not any(np.asarray(values).any() for values in found)


def test_nothing_found():
    _, inputs, size = case("few")
    logits, deltas, boxes, present, sizes = batch([inputs] * 2, [size] * 2)
    background = jnp.zeros_like(logits).at[..., 0].set(20)
    nowhere, broken = jnp.zeros_like(present), jnp.full_like(logits, jnp.nan)
    for changed in (
        (background, deltas, boxes, present),
        (logits, deltas, boxes, nowhere),
        (broken, deltas, boxes, present),
    ):
        found = run(*changed, sizes)
        assert not any(np.asarray(values).any() for values in found)


@pytest.mark.slow
def test_float64_and_bfloat16(float64):
    arrays, inputs, size = case("few")
    logits, deltas, boxes, present, sizes = batch([inputs], [size])
    wide = run(logits.astype(float), deltas.astype(float), boxes.astype(float), present, sizes)
    assert wide.boxes.dtype == wide.scores.dtype == jnp.float64
    np.testing.assert_allclose(wide.scores[0][np.asarray(wide.present[0])], arrays["scores"], atol=1e-5)
    narrow = jax.eval_shape(postprocess, logits.astype(jnp.bfloat16), deltas.astype(jnp.bfloat16), boxes, present, sizes)
    assert narrow.boxes.dtype == narrow.scores.dtype == jnp.float32
    assert narrow.labels.dtype == jnp.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deltas": jnp.zeros((1, 5, 8))}, r"shapes \(1, 5, 3\), \(1, 5, 8\)"),
        ({"logits": jnp.zeros((1, 5, 1)), "deltas": jnp.zeros((1, 5, 4))}, "two classes or more"),
        ({"sizes": jnp.zeros(2, jnp.int32)}, r"\(2,\)"),
        ({"max_detections": 0}, "max_detections=0"),
        ({"score_threshold": 5}, "score_threshold=5"),
    ],
)
def test_misuse(change, message):
    arguments = {
        "logits": jnp.zeros((1, 5, 3)), "deltas": jnp.zeros((1, 5, 12)), "boxes": jnp.zeros((1, 5, 4)),
        "present": jnp.zeros((1, 5), bool), "sizes": jnp.ones((1, 2), jnp.int32),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        postprocess(**{**arguments, **change})
