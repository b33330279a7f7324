"""The losses of a training step, under the reference's names."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from gw_jax.detection.anchors import LEVELS, anchor_ids, anchors, visible
from gw_jax.detection.canvas import check_images
from gw_jax.detection.heads import MASK_SIZE
from gw_jax.detection.matching import match
from gw_jax.detection.options import Sampling
from gw_jax.detection.polygons import rasterize
from gw_jax.detection.proposals import WEIGHTS, propose
from gw_jax.detection.regions import Regions, encode_where, image_keys, sample_regions
from gw_jax.detection.sampling import sample_masks
from gw_jax.detection.targets import Targets, check_targets
from gw_jax.ops.boxes import iou
from gw_jax.ops.per_device import on_each_device

if TYPE_CHECKING:
    from gw_jax.detection.detector import Detector

# IoU from which on an anchor is positive, and below which it is negative.
RPN_IOU = (0.7, 0.3)
RPN_BETA = 1 / 9
BOX_BETA = 1.0
# The mask head doubles the resolution of its regions.
TARGET_SIZE = 2 * MASK_SIZE


def detector_losses(
    detector: "Detector",
    images: jax.Array,
    valid: jax.Array,
    sizes: jax.Array,
    targets: Targets,
    key: jax.Array,
    *,
    sampling: Sampling | None = None,
    remat: bool = False,
) -> dict[str, jax.Array]:
    """The losses of a batch; their sum is what the reference minimises.

    With ``N`` sampled anchors, ``R`` sampled RoIs and ``P`` positive RoIs, each counted over all images::

        loss_objectness   = sum over sampled anchors of BCE(logit, positive) / N
        loss_rpn_box_reg  = sum over positive anchors of smooth_l1(deltas - targets, beta=1/9) / N
        loss_classifier   = sum over sampled RoIs of cross_entropy(logits, label) / R
        loss_box_reg      = sum over positive RoIs of smooth_l1(deltas of the label - targets, beta=1) / R
        loss_mask         = sum over positive RoIs and 28 x 28 pixels of BCE(logit of the label, inside) / (784 P)

    where ``smooth_l1(d, beta)`` is ``d^2 / (2 beta)`` for ``|d| < beta``, else ``|d| - beta / 2``, and each is 0 if nothing
    was sampled. The reference takes these means over the images of each GPU and then over GPUs, which differs where GPUs
    have different counts: in ``loss_mask``, or where an image has fewer candidates than its sample.

    An image without objects trains on negatives.

    Args:
        detector: the network.
        images: normalised, ``[n, h, w, 3]``, on a canvas.
        valid: int32 ``[n, 2]``, heights and widths of the images rounded up to multiples of 32.
        sizes: int32 ``[n, 2]``, their true heights and widths.
        targets: ground truth, made by :func:`pad_targets`.
        key: the randomness of the samples.
        sampling: sizes of the samples; None for the reference's.
        remat: whether the gradient recomputes backbone and pyramid in parts, for less memory.

    Returns:
        Scalars, at least float32; ``loss_mask`` only with a mask head.

    Raises:
        TypeError: images that are not floating point.
        ValueError: shapes that do not fit each other, sides of the canvas that are no multiples of 32, or, where values are
            not traced, an image larger than its canvas.
        ConfigError: a number in ``sampling`` that is out of range.

    Source: Ren et al., Faster R-CNN (NeurIPS 2015); He et al., Mask R-CNN (ICCV 2017).

    Example:
        >>> import jax
        >>> from gw_jax.detection import Sampling, create_detector, detector_losses, pad_targets, place_on_canvas
        >>> from flax import nnx
        >>> import numpy as np
        >>> small = {"width": 8, "fpn_features": 32, "head_features": 32, "norm_options": {"num_groups": 8}}
        >>> detector = create_detector("resnet18", num_classes=3, **small, rngs=nnx.Rngs(0))
        >>> images, valid, sizes = place_on_canvas([np.ones((60, 90, 3), np.float32)], (64, 96))
        >>> targets = pad_targets([[[10, 5, 70, 50]]], [[2]], num_classes=3, max_objects=2)
        >>> def losses_of(key):
        ...     sampling = Sampling(pre_nms_top_n=50, post_nms_top_n=50, proposals=20, box_batch=16)
        ...     return detector_losses(detector, images, valid, sizes, targets, key, sampling=sampling)
        >>> sorted(jax.jit(losses_of)(jax.random.key(0)))
        ['loss_box_reg', 'loss_classifier', 'loss_objectness', 'loss_rpn_box_reg']
    """
    sampling = Sampling() if sampling is None else sampling
    sampling.check()
    check_images(images, valid, sizes)
    sampling.require_batch(images.shape[0])
    classes = detector.arguments["num_classes"]
    arrays = check_targets(targets, images.shape[0], masks=detector.mask_head is not None, num_classes=classes)
    anchor_key, region_key = jax.random.split(key)
    pyramid = detector.pyramid(images, valid, remat=remat)
    logits, deltas = detector.rpn(pyramid, valid)
    losses = rpn_losses(logits, deltas, sizes, arrays, anchor_key, sampling)
    proposals, _, present = propose(
        jax.lax.stop_gradient(logits),
        jax.lax.stop_gradient(deltas),
        valid,
        sizes,
        pre_nms_top_n=sampling.pre_nms_top_n,
        post_nms_top_n=sampling.post_nms_top_n,
        num_proposals=sampling.proposals,
        pool_images=sampling.pool_images,
    )
    # Rounded to float32, as the reference stores boxes whatever the activations: in float64, exact boxes would put a ReLU
    # of the head on its other side here and there, and change gradients by 1e-3.
    proposals = proposals.astype(jnp.float32).astype(proposals.dtype)
    regions = sample_regions(proposals, present, arrays, region_key, sampling)
    losses |= box_losses(*detector.classify(pyramid, valid, regions.boxes), regions)
    if detector.mask_head is not None:
        positives = max(int(sampling.box_batch * sampling.box_positive_fraction), 1)
        first = jax.tree.map(lambda array: array[:, :positives], regions)
        mask_logits = detector.mask_logits(pyramid, valid, first.boxes, first.labels)
        losses |= mask_loss(mask_logits, first, arrays, sizes)
    return losses


def rpn_losses(
    logits: dict[str, jax.Array],
    deltas: dict[str, jax.Array],
    sizes: jax.Array,
    targets: dict[str, jax.Array],
    key: jax.Array,
    sampling: Sampling,
) -> dict[str, jax.Array]:
    """The losses of the region proposal network.

    Args:
        logits: ``[n, h, w, 3]`` for "P2" to "P6".
        deltas: ``[n, h, w, 12]``, channel ``4 anchor + coordinate``.
        sizes: int32 ``[n, 2]``, heights and widths of the images.
        targets: as :func:`detector_losses` gets them.
        key: the randomness.
        sampling: how many anchors.
    """
    shapes = {level: (features.shape[1], features.shape[2]) for level, features in logits.items()}
    count = logits[LEVELS[0]].shape[0]
    flat_logits = jnp.concatenate([logits[level].reshape(count, -1) for level in LEVELS], 1)
    flat_deltas = jnp.concatenate([deltas[level].reshape(count, -1, 4) for level in LEVELS], 1)

    def of_images(*batch: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        boxes = jnp.concatenate([anchors(*shapes[level], level) for level in LEVELS]).astype(flat_deltas.dtype)
        ids = jnp.concatenate([anchor_ids(*shapes[level], level) for level in LEVELS])

        def of_image(
            size: jax.Array, truth: jax.Array, present: jax.Array, image_key: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            matches = match(iou(truth, boxes), *RPN_IOU, True, present=present)
            # Anchors that reach beyond the image take no part, even one that is the best of an object.
            inside = visible(boxes, size)
            positive, negative = sample_masks(
                inside & (matches >= 0),
                inside & (matches == -1),
                image_key,
                sampling.rpn_batch,
                sampling.rpn_positive_fraction,
                ids=ids,
            )
            return positive, negative, encode_where(positive, truth[jnp.maximum(matches, 0)], boxes, WEIGHTS)

        return jax.vmap(of_image)(*batch)

    truth = targets["boxes"].astype(flat_deltas.dtype)
    positive, negative, goals = on_each_device(of_images, sizes, truth, targets["present"], image_keys(key, count))
    sampled = positive | negative
    total = _number_of(sampled, flat_logits)
    return {
        "loss_objectness": jnp.where(sampled, _binary_cross_entropy(flat_logits, positive), 0).sum() / total,
        "loss_rpn_box_reg": jnp.where(positive[..., None], smooth_l1(flat_deltas - goals, RPN_BETA), 0).sum() / total,
    }


def box_losses(logits: jax.Array, deltas: jax.Array, regions: Regions) -> dict[str, jax.Array]:
    """The losses of the box head.

    Args:
        logits: ``[n, s, c]``.
        deltas: ``[n, s, 4 c]``, index ``4 class + coordinate``.
        regions: the RoIs that they are for.
    """
    total = _number_of(regions.sampled, logits)
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), regions.labels[..., None], -1)[..., 0]
    per_class = deltas.reshape(*logits.shape, 4)
    own = jnp.take_along_axis(per_class, regions.labels[..., None, None], 2)[..., 0, :]
    positive = (regions.labels > 0)[..., None]
    return {
        "loss_classifier": jnp.where(regions.sampled, entropy, 0).sum() / total,
        "loss_box_reg": jnp.where(positive, smooth_l1(own - regions.deltas, BOX_BETA), 0).sum() / total,
    }


def mask_loss(logits: jax.Array, regions: Regions, targets: dict[str, jax.Array], sizes: jax.Array) -> dict[str, jax.Array]:
    """The loss of the mask head.

    Args:
        logits: ``[n, s, 28, 28]``, of the class of each RoI.
        regions: the RoIs; those of the background do not count.
        targets: as :func:`detector_losses` gets them.
        sizes: int32 ``[n, 2]``, heights and widths of the images.
    """

    def of_image(edges: jax.Array, parts: jax.Array, objects: jax.Array, boxes: jax.Array, size: jax.Array) -> jax.Array:
        return rasterize(edges[objects], parts[objects], boxes, size, TARGET_SIZE)

    arguments = (targets["edges"], targets["parts"], regions.objects, regions.boxes, sizes)
    inside = jax.lax.stop_gradient(on_each_device(jax.vmap(of_image), *arguments))
    positive = regions.labels > 0
    losses = jnp.where(positive[..., None, None], _binary_cross_entropy(logits, inside), 0)
    return {"loss_mask": losses.sum() / (_number_of(positive, logits) * TARGET_SIZE**2)}


def smooth_l1(difference: jax.Array, beta: float) -> jax.Array:
    """``d^2 / (2 beta)`` for ``|d| < beta``, else ``|d| - beta / 2``, element by element.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection.losses import smooth_l1
        >>> smooth_l1(jnp.array([0.5, -3.0]), 1.0).tolist()
        [0.125, 2.5]
    """
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * difference * difference / beta, size - 0.5 * beta)


def _number_of(sampled: jax.Array, like: jax.Array) -> jax.Array:
    """How many are ``sampled``, at least 1, in the type of ``like``."""
    return jnp.maximum(sampled.sum(), 1).astype(like.dtype)


def _binary_cross_entropy(logits: jax.Array, positive: jax.Array) -> jax.Array:
    """Of the probability ``sigmoid(logits)`` with the target ``positive``, finite for every finite logit."""
    return jax.nn.softplus(jnp.where(positive, -logits, logits))
