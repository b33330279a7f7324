"""Detections against the golden data, and against suppression class by class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.postprocess import postprocess
from gw_jax.ops.boxes import clip, decode
from gw_jax.ops.nms import nms
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


@pytest.mark.parametrize("name", ["few", "many", "ties"])
def test_golden(name):
    arrays, inputs, size = case(name)
    found = run(*batch([inputs], [size]), max_detections=int(arrays["max_detections"]))
    boxes, scores, labels = arrays["boxes"], arrays["scores"], arrays["labels"]
    if len(scores) > arrays["max_detections"]:
        # The best of them, the lower index first.
        best = np.sort(np.argsort(-scores, kind="stable")[: arrays["max_detections"]])
        assert len(np.unique(scores)) < len(scores)
        boxes, scores, labels = boxes[best], scores[best], labels[best]
    present = np.asarray(found.present[0])
    np.testing.assert_array_equal(present, np.arange(len(present)) < len(scores))
    np.testing.assert_array_equal(found.labels[0][present], labels)
    np.testing.assert_allclose(found.scores[0][present], scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes[0][present], boxes, atol=1e-3)
    for values in found[:3]:
        assert not np.asarray(values[0])[~present].any()


def test_batch_mates_and_padding_change_nothing():
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
    suppress = jax.jit(lambda *args: nms(*args[:2], 0.5, args[2]))
    for label in range(1, scores.shape[1]):
        kept = suppress(decoded[:, label], scores[:, label], scores[:, label] > score_threshold)
        found += [(label, scores[i, label], decoded[i, label]) for i in np.flatnonzero(kept)]
    best = np.sort(np.argsort([-score for _, score, _ in found], kind="stable")[:max_detections])
    return [found[i] for i in best]


@pytest.mark.parametrize(("score_threshold", "max_detections"), [(0.0, 100), (0.05, 1000), (0.05, 20)])
def test_equals_suppression_class_by_class(score_threshold, max_detections):
    """With many candidates of many classes on few places, more than a tile of them, and many equal scores."""
    rng = np.random.default_rng(0)
    k, num_classes, size = 120, 9, (100, 100)
    corner = rng.uniform(0, 60, (6, 2))[rng.integers(0, 6, k)] + rng.normal(0, 3, (k, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(25, 35, (k, 2))], 1).astype(np.float32)
    logits = np.round(rng.normal(0, 1, (k, num_classes)) * 2).astype(np.float32) / 2
    deltas = (0.5 * rng.normal(size=(k, 4 * num_classes))).astype(np.float32)
    options = {"score_threshold": score_threshold, "max_detections": max_detections}
    found = run(*batch([(logits, deltas, boxes)], [size], rows=k), **options)
    expected = class_by_class(logits, deltas, boxes, size, **options)
    present = np.asarray(found.present[0])
    assert present.sum() == len(expected)
    labels, scores, boxes = (np.stack(values) for values in zip(*expected, strict=True))
    np.testing.assert_array_equal(found.labels[0][present], labels)
    np.testing.assert_allclose(found.scores[0][present], scores, rtol=1e-6)
    np.testing.assert_allclose(found.boxes[0][present], boxes, atol=1e-4)


def test_nothing_found():
    arrays, inputs, size = case("few")
    logits, deltas, boxes, present, sizes = batch([inputs], [size])
    background = jnp.zeros_like(logits).at[..., 0].set(20)
    nowhere, broken = jnp.zeros_like(present), jnp.full_like(logits, jnp.nan)
    for changed in (
        (background, deltas, boxes, present),
        (logits, deltas, boxes, nowhere),
        (broken, deltas, boxes, present),
    ):
        found = run(*changed, sizes)
        assert not any(np.asarray(values).any() for values in found)
    assert len(arrays["scores"])


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
