"""Detections of small detectors: canvas, batch mates and devices change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.detection import golden
from tests.detection.detectors import batch, matches, random_image, small

pytestmark = pytest.mark.usefixtures("quick")

IMAGES = [random_image(90, 130), random_image(120, 40), random_image(64, 64), random_image(33, 97)]
CANVAS = (128, 160)


@nnx.jit
def detect(detector, images, valid, sizes):
    return detector.detect(images, valid, sizes)


@pytest.fixture(scope="module")
def detector():
    return small(seed=1, norm="frozen_bn", mask_head=True, mask_head_norm="gn", fpn_features=32)


@pytest.fixture(scope="module")
def together(detector):
    detector.eval()
    return jax.device_get(detect(detector, *batch(IMAGES, *CANVAS)))


def assert_same(found, expected):
    """Detections of one image are those of another run; those of almost equal scores may stand in another order."""
    np.testing.assert_array_equal(found.present, expected.present)
    count = expected.present.sum()
    index, distance = matches(found.boxes[:count], found.labels[:count], expected.boxes[:count], expected.labels[:count])
    assert sorted(index) == list(range(count))
    assert distance.max() <= 1e-3
    np.testing.assert_allclose(found.scores[index], expected.scores[:count], atol=1e-5)
    np.testing.assert_allclose(found.masks[index], expected.masks[:count], atol=1e-4)


def row(detections, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], detections)


SLOW = pytest.mark.slow  # Whole detectors, of which test_networks.py tests the part that sees the canvas.


@SLOW
def test_shapes_and_absent_rows(together):
    assert together.boxes.shape == (4, 100, 4)
    assert together.masks.shape == (4, 100, 28, 28)
    assert together.labels.dtype == np.int32
    assert together.scores.dtype == together.boxes.dtype == together.masks.dtype == np.float32
    present = together.present
    assert 0 < present.sum() < present.size
    assert set(np.unique(together.labels[present])) <= set(range(1, 6))
    assert len(np.unique(together.labels[present])) > 2
    for leaf in (together.boxes, together.scores, together.labels, together.masks):
        assert not leaf[~present].any()
    assert (together.scores[present] > 0.05).all()
    assert ((together.masks[present] > 0) & (together.masks[present] < 1)).all()
    for index, image in enumerate(IMAGES):
        height, width = image.shape[:2]
        boxes = together.boxes[index][present[index]]
        assert (boxes >= 0).all()
        assert (boxes <= [width - 1, height - 1, width - 1, height - 1]).all()


@SLOW
def test_an_image_by_itself_has_the_same_detections(detector, together):
    height, width = golden.aligned(IMAGES[0].shape[:2])
    assert (height, width) != CANVAS
    assert_same(row(detect(detector, *batch(IMAGES[:1], height, width)), 0), row(together, 0))


@SLOW
def test_four_devices_find_the_same(detector, together):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    graphdef, state = nnx.split(detector)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    # Another order: each image has another place, too.
    inputs = jax.device_put(batch(IMAGES[::-1], *CANVAS), sharding)
    found = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state).detect(*inputs))(state, *inputs)
    assert len(found.boxes.sharding.device_set) == 4
    for index in range(4):
        assert_same(row(found, 3 - index), row(together, index))


def test_no_mask_head_no_masks():
    shapes = jax.eval_shape(detect, small(norm="gn"), *batch(IMAGES[:1], *CANVAS))
    assert shapes.masks is None
    assert shapes.boxes == jax.ShapeDtypeStruct((1, 100, 4), jnp.float32)
