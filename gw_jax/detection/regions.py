"""Regions of interest of a training step: their sample and their targets."""

import dataclasses

import jax
import jax.numpy as jnp

from gw_jax.detection.matching import match
from gw_jax.detection.options import Sampling
from gw_jax.detection.postprocess import WEIGHTS
from gw_jax.detection.sampling import sample_indices
from gw_jax.ops.boxes import encode, iou
from gw_jax.ops.per_device import on_each_device

# IoU from which on a region is positive, and below which it is negative.
BOX_IOU = (0.5, 0.5)
# Ground-truth boxes are candidates, too; their random numbers must not depend on the number of proposals.
_GROUND_TRUTH_IDS = 1 << 24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Regions:
    """The regions of interest (RoIs) that the heads are trained on: ``s`` of each of ``n`` images, positives first.

    Attributes:
        boxes: ``[n, s, 4]``.
        sampled: bool ``[n, s]``; the others are padding.
        labels: int32 ``[n, s]``, 0 for the background.
        deltas: regression targets ``[n, s, 4]`` of positives, else 0.
        objects: int32 ``[n, s]``, the index of the ground truth of a positive, else 0.
    """

    boxes: jax.Array
    sampled: jax.Array
    labels: jax.Array
    deltas: jax.Array
    objects: jax.Array


def sample_regions(
    proposals: jax.Array, present: jax.Array, targets: dict[str, jax.Array], key: jax.Array, sampling: Sampling
) -> Regions:
    """Samples RoIs of each image from its proposals and its ground truth, and assigns their targets.

    Args:
        proposals: ``[n, k, 4]``.
        present: bool ``[n, k]``.
        targets: as :func:`detector_losses` gets them.
        key: the randomness.
        sampling: how many RoIs.
    """

    def of_image(
        boxes: jax.Array, exists: jax.Array, truth: jax.Array, objects: jax.Array, classes: jax.Array, key: jax.Array
    ) -> Regions:
        candidates = jnp.concatenate([boxes, truth])
        exists = jnp.concatenate([exists, objects])
        ids = jnp.concatenate(
            [jnp.arange(len(boxes), dtype=jnp.int32), _GROUND_TRUTH_IDS + jnp.arange(len(truth), dtype=jnp.int32)]
        )
        matches = match(iou(truth, candidates), *BOX_IOU, False, present=objects)
        chosen, sampled = sample_indices(
            exists & (matches >= 0),
            exists & (matches == -1),
            key,
            sampling.box_batch,
            sampling.box_positive_fraction,
            ids=ids,
        )
        # Padding rows are a box of one pixel, so that their features are those of some region.
        regions = jnp.where(sampled[:, None], candidates[chosen], 0)
        positive = sampled & (matches[chosen] >= 0)
        matched = jnp.where(positive, matches[chosen], 0)
        return Regions(
            boxes=regions,
            sampled=sampled,
            labels=jnp.where(positive, classes[matched], 0).astype(jnp.int32),
            deltas=encode_where(positive, truth[matched], regions, WEIGHTS),
            objects=matched,
        )

    truth = targets["boxes"].astype(proposals.dtype)
    arguments = (proposals, present, truth, targets["present"], targets["labels"], image_keys(key, proposals.shape[0]))
    return jax.lax.stop_gradient(on_each_device(jax.vmap(of_image), *arguments))


def encode_where(keep: jax.Array, truth: jax.Array, boxes: jax.Array, weights: tuple[float, ...]) -> jax.Array:
    """Regression targets, 0 where not ``keep``; there a box stands for the truth, so that no logarithm is infinite."""
    return jnp.where(keep[:, None], encode(jnp.where(keep[:, None], truth, boxes), boxes, weights), 0)


def image_keys(key: jax.Array, count: int) -> jax.Array:
    """One key per image, which does not depend on the number of images."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count))
