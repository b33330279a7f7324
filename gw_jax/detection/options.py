"""How the losses choose anchors, proposals and regions of interest."""

import dataclasses

from gw_jax.config_checks import check_values, number
from gw_jax.errors import ConfigError


@dataclasses.dataclass(slots=True, kw_only=True)
class Sampling:
    """The numbers of anchors, proposals and regions of interest (RoIs) in training; the defaults are the reference's.

    A sample has at most ``batch * positive_fraction`` positives, drawn uniformly without replacement, and negatives fill it
    up. A size beyond the number of candidates takes all of them.

    Attributes:
        rpn_batch: anchors per image for the losses of the RPN.
        rpn_positive_fraction: largest share of positives among them.
        box_batch: RoIs per image for the losses of the heads.
        box_positive_fraction: largest share of positives among them; the mask head sees the positives.
        pre_nms_top_n: anchors per level and image that are decoded.
        post_nms_top_n: proposals per level and image that are kept after non-maximum suppression.
        proposals: proposals per image that are kept over all levels, before the ground truth is appended.
        pool_images: with ``p`` above 1, the best ``p * proposals`` of every ``p`` consecutive images are kept instead,
            whatever image they are of. It must divide the batch. The reference pools the images of a GPU: 2 with a
            ResNet-50.

    Example:
        >>> from gw_jax.detection import Sampling
        >>> Sampling(box_batch=128).rpn_batch
        256
    """

    rpn_batch: int = number(256, 1)
    rpn_positive_fraction: float = number(0.5, 0, 1)
    box_batch: int = number(512, 1)
    box_positive_fraction: float = number(0.25, 0, 1)
    pre_nms_top_n: int = number(2000, 1)
    post_nms_top_n: int = number(2000, 1)
    proposals: int = number(1000, 1)
    pool_images: int = number(1, 1)

    def check(self) -> None:
        """Checks that every number is in range.

        Raises:
            ConfigError: the first that is not.
        """
        check_values(self, "sampling")

    def require_batch(self, images: int) -> None:
        """Raises ConfigError unless a batch of ``images`` can be cut into sets of ``pool_images``."""
        if images % self.pool_images:
            raise ConfigError(
                f"sampling.pool_images={self.pool_images} does not divide the batch of {images} images; choose a divisor, "
                "or 1 for the best proposals of each image."
            )
