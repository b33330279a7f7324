"""The configuration of the augmentation that runs on the devices."""

import dataclasses

from gw_jax.config_checks import number


@dataclasses.dataclass(slots=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training images on the devices, beside shift and flip; zero turns each off.

    Attributes:
        mixup: alpha of mixup: pairs of images are blended with a weight from Beta(alpha, alpha).
        cutmix: alpha of CutMix: a box of one image is pasted into the other. With both, each step applies one at random.
        random_erasing: probability that a rectangle of an image is erased.
        randaugment_layers: random operations of RandAugment on each image; 2 is usual.
        randaugment_magnitude: their strength, 0 to 30; 9 is usual.

    Example:
        >>> from gw_jax.classification import AugmentConfig
        >>> AugmentConfig(mixup=0.2, cutmix=1.0).random_erasing
        0.0
    """

    mixup: float = number(0.0, 0)
    cutmix: float = number(0.0, 0)
    random_erasing: float = number(0.0, 0, 1)
    randaugment_layers: int = number(0, 0)
    randaugment_magnitude: int = number(9, 0, 30)
