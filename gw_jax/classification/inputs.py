"""The inputs of a classifier on the devices: augmented, normalised images and their targets."""

import jax

from gw_jax.augment.config import AugmentConfig
from gw_jax.augment.geometry import normalise, random_flip, random_shift
from gw_jax.augment.mix import mix, one_hot, random_erasing
from gw_jax.augment.randaugment import rand_augment
from gw_jax.data.config import DataConfig
from gw_jax.data.specs import DatasetSpec
from gw_jax.train.task import Batch

# Each use of random numbers has a key of its own: shift, flip, RandAugment, erasing, mixing, dropout.
NUM_KEYS = 6


def training_inputs(
    batch: Batch,
    key: jax.Array,
    *,
    data: DataConfig,
    augment: AugmentConfig,
    label_smoothing: float,
    spec: DatasetSpec,
    dtype: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Augmented, normalised images; their targets; and the key of dropout.

    Args:
        batch: ``image`` uint8 ``[n, h, w, c]`` and ``label`` int32 ``[n]``.
        key: all randomness.
        data: shift and flip.
        augment: everything else.
        label_smoothing: fraction of a target that is spread over all classes.
        spec: mean, standard deviation and classes of the data.
        dtype: type of the images.

    Returns:
        Images ``[n, h, w, c]``; targets, which are labels ``[n]`` or, mixed or smoothed, ``[n, num_classes]``; a key.
    """
    shift, flip, randaugment, erasing, mixing, dropout = jax.random.split(key, NUM_KEYS)
    images, labels = random_shift(batch["image"], shift, data.shift), batch["label"]
    if data.flip:
        images = random_flip(images, flip)
    if augment.randaugment_layers:
        images = rand_augment(
            images, randaugment, num_layers=augment.randaugment_layers, magnitude=augment.randaugment_magnitude
        )
    images = normalise(images, spec.mean, spec.std, dtype)
    if augment.random_erasing:
        images = random_erasing(images, erasing, augment.random_erasing)
    if not (label_smoothing or augment.mixup or augment.cutmix):
        return images, labels, dropout
    targets = one_hot(labels, spec.num_classes, label_smoothing)
    images, targets = mix(images, targets, mixing, mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix)
    return images, targets, dropout


def evaluation_inputs(batch: Batch, spec: DatasetSpec, dtype: str) -> jax.Array:
    """Normalised images ``[n, h, w, c]``."""
    return normalise(batch["image"], spec.mean, spec.std, dtype)
