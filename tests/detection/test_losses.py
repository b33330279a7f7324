"""The losses and the sample of regions, against the reference's numbers for given logits and deltas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.losses import box_losses, mask_loss, rpn_losses, smooth_l1
from gw_jax.detection.options import Sampling
from gw_jax.detection.regions import Regions, sample_regions
from gw_jax.detection.targets import check_targets, pad_targets
from tests.detection import golden

LEVELS = ("P2", "P3", "P4", "P5", "P6")
pytestmark = pytest.mark.usefixtures("quick")
EVERYTHING = Sampling(rpn_batch=1_000_000, box_batch=100_000)


@pytest.fixture(scope="module")
def data():
    return golden.load("ops/rpn_and_losses")


def nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def pyramid_of(data, name):
    return {level: nhwc(data[f"{name}_{level}_nchw"]) for level in LEVELS}


def ground_truth(data, **polygons):
    padded = pad_targets([data["gt_boxes"]], [data["gt_labels"]], **polygons, max_objects=7)
    return check_targets(padded, 1, masks="polygons" in polygons)


def relative(found, expected):
    return np.testing.assert_allclose(found, float(expected), rtol=1e-5, atol=1e-9)


def norm(array):
    return float(jnp.sqrt((array.astype(jnp.float64 if array.dtype == jnp.float64 else jnp.float32) ** 2).sum()))


def test_rpn_losses_and_gradients(data):
    logits, deltas = pyramid_of(data, "logits"), pyramid_of(data, "deltas")
    sizes, targets = jnp.asarray(data["image_hw"], jnp.int32)[None], ground_truth(data)

    @jax.jit
    def losses_and_gradients(logits, deltas):
        def total(logits, deltas):
            losses = rpn_losses(logits, deltas, sizes, targets, jax.random.key(0), EVERYTHING)
            return sum(losses.values()), losses

        return jax.grad(total, (0, 1), has_aux=True)(logits, deltas)

    (grad_logits, grad_deltas), losses = losses_and_gradients(logits, deltas)
    relative(losses["loss_objectness"], data["loss_objectness"])
    relative(losses["loss_rpn_box_reg"], data["loss_rpn_box_reg"])
    for level in LEVELS:
        relative(norm(grad_logits[level]), data[f"grad_norm_logits_{level}"])
        relative(norm(grad_deltas[level]), data[f"grad_norm_deltas_{level}"])


def test_regions_are_the_references(data):
    count = len(data["train_small.boxes"]) - len(data["gt_boxes"])
    # The golden boxes end with the ground truth, which is appended here; and padding must not matter.
    proposals = np.zeros((1, count + 30, 4), np.float32)
    proposals[0, :count] = data["train_small.boxes"][:count]
    present = np.arange(count + 30)[None] < count
    regions = jax.jit(lambda *a: sample_regions(*a, jax.random.key(0), EVERYTHING))(proposals, present, ground_truth(data))
    kept = np.asarray(regions.sampled[0])
    assert kept.sum() == len(data["train_small.boxes"])

    def rows(boxes, labels, deltas):
        table = np.concatenate([boxes, np.asarray(labels)[:, None], deltas], 1)
        return table[np.lexsort(table[:, :5].T[::-1])]

    found = rows(regions.boxes[0][kept], regions.labels[0][kept], regions.deltas[0][kept])
    goals = np.where(data["box_head.labels"][:, None] > 0, data["box_head.regression_targets"], 0)
    expected = rows(data["train_small.boxes"], data["box_head.labels"], goals)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_box_losses_and_gradients(data):
    head = golden.part(data, "box_head")
    labels = jnp.asarray(head["labels"], jnp.int32)[None]
    regions = Regions(
        boxes=jnp.asarray(data["train_small.boxes"])[None],
        sampled=jnp.ones_like(labels, bool),
        labels=labels,
        deltas=jnp.asarray(head["regression_targets"])[None],
        objects=jnp.zeros_like(labels),
    )

    def total(logits, deltas):
        losses = box_losses(logits, deltas, regions)
        return sum(losses.values()), losses

    inputs = jnp.asarray(head["class_logits"])[None], jnp.asarray(head["box_deltas"])[None]
    gradients, losses = jax.jit(jax.grad(total, (0, 1), has_aux=True))(*inputs)
    relative(losses["loss_classifier"], head["loss_classifier"])
    relative(losses["loss_box_reg"], head["loss_box_reg"])
    relative(norm(gradients[0]), head["grad_class_logits_norm"])
    relative(norm(gradients[1]), head["grad_box_deltas_norm"])


def test_mask_loss_and_gradient(data):
    head = golden.part(data, "mask_head")
    targets = ground_truth(data, polygons=[[[part.tolist()] for part in head["polygons"]]])
    boxes = data["train_small.boxes"][head["positive_index"]]
    labels = data["box_head.labels"][head["positive_index"]]
    objects = [int(np.flatnonzero(data["gt_labels"] == label)[0]) for label in labels]
    regions = Regions(
        boxes=jnp.asarray(boxes)[None],
        sampled=jnp.ones((1, len(boxes)), bool),
        labels=jnp.asarray(labels, jnp.int32)[None],
        deltas=jnp.zeros((1, len(boxes), 4)),
        objects=jnp.asarray(objects)[None],
    )
    of_class = np.take_along_axis(head["logit_class_part"], labels[:, None], 1)[:, :, None]
    logits = jnp.asarray(of_class + head["logit_space_part"], jnp.float32)[None]
    sizes = jnp.asarray(data["image_hw"], jnp.int32)[None]
    loss, gradient = jax.jit(jax.value_and_grad(lambda x: mask_loss(x, regions, targets, sizes)["loss_mask"]))(logits)
    relative(loss, head["loss_mask"])
    relative(norm(gradient), head["grad_norm"])


@pytest.mark.parametrize("name", ["rpn", "box"])
def test_smooth_l1(name):
    data = golden.part(golden.load("ops/tables"), "smooth_l1")
    beta = float(data[f"{name}.beta"])
    difference = jnp.asarray(data["input"] - data["target"], jnp.float32)
    np.testing.assert_allclose(smooth_l1(difference, beta), data[f"{name}.elementwise"], rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda d: smooth_l1(d, beta).sum())(difference)
    np.testing.assert_allclose(gradient, data[f"{name}.grad"], rtol=1e-5, atol=1e-6)


def empty_regions(count):
    return Regions(
        boxes=jnp.zeros((1, count, 4)),
        sampled=jnp.zeros((1, count), bool),
        labels=jnp.zeros((1, count), jnp.int32),
        deltas=jnp.zeros((1, count, 4)),
        objects=jnp.zeros((1, count), jnp.int32),
    )


@pytest.mark.usefixtures("strict")
def test_nothing_sampled_is_zero_with_finite_gradients():
    logits, deltas = jnp.full((1, 3, 4), 1e4), jnp.full((1, 3, 16), -1e4)

    def total(logits, deltas):
        return sum(box_losses(logits, deltas, empty_regions(3)).values())

    value, gradients = jax.value_and_grad(total, (0, 1))(logits, deltas)
    assert value == 0
    assert not any(jnp.any(gradient) for gradient in gradients)


@pytest.mark.usefixtures("strict")
def test_an_image_without_objects_trains_on_negatives():
    shapes = {"P2": (16, 16), "P3": (8, 8), "P4": (4, 4), "P5": (2, 2), "P6": (1, 1)}
    logits = {level: jnp.zeros((1, *shape, 3)) for level, shape in shapes.items()}
    deltas = {level: jnp.ones((1, *shape, 12)) for level, shape in shapes.items()}
    targets = check_targets(pad_targets([[]], [[]], max_objects=2), 1, masks=False)
    sizes = jnp.array([[64, 64]], jnp.int32)
    losses = jax.jit(lambda *a: rpn_losses(*a, jax.random.key(1), Sampling()))(logits, deltas, sizes, targets)
    np.testing.assert_allclose(losses["loss_objectness"], np.log(2), rtol=1e-6)
    assert losses["loss_rpn_box_reg"] == 0
    boxes = jnp.array([[[0.0, 0, 9, 9], [5, 5, 20, 20], [0, 0, 0, 0]]])
    present = jnp.array([[True, True, False]])
    regions = jax.jit(lambda *a: sample_regions(*a, jax.random.key(0), Sampling()))(boxes, present, targets)
    assert regions.sampled.sum() == 2
    assert not regions.labels.any()
    assert not regions.deltas.any()


def test_padding_changes_no_sample():
    """More objects' slots and more proposals' slots: the same regions."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (40, 2))], 1).astype(np.float32)
    truth, labels = boxes[:3] + 1, [1, 2, 1]

    def chosen(slots, objects):
        proposals = np.zeros((1, slots, 4), np.float32)
        proposals[0, :40] = boxes
        targets = check_targets(pad_targets([truth], [labels], max_objects=objects), 1, masks=False)
        sampling = Sampling(box_batch=12)
        sample = jax.jit(lambda *a: sample_regions(*a, jax.random.key(3), sampling))
        regions = sample(proposals, np.arange(slots)[None] < 40, targets)
        kept = np.asarray(regions.sampled[0])
        return {tuple(row) for row in np.asarray(regions.boxes[0])[kept].tolist()}

    few, many = chosen(40, 3), chosen(90, 20)
    assert len(few) == 12
    assert few == many
