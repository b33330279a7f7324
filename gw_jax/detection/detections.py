"""What the detector returns."""

from typing import NamedTuple

import jax


class Detections(NamedTuple):
    """The detections of ``n`` images, by class; rows that are not present are the last ones, and zero.

    Attributes:
        boxes: ``[n, 100, 4]``, x1 y1 x2 y2 in pixels of the canvas, both ends inclusive.
        scores: ``[n, 100]``.
        labels: int32 ``[n, 100]``, 1 to the number of classes - 1.
        present: bool ``[n, 100]``.
        masks: ``[n, 100, 28, 28]``, probabilities of the predicted class inside its box; None without a mask head.

    Example:
        >>> from gw_jax.detection import Detections
        >>> Detections._fields
        ('boxes', 'scores', 'labels', 'present', 'masks')
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    present: jax.Array
    masks: jax.Array | None

    def of_image(self, row: int) -> "Detections":
        """Those of one image, without the leading axis."""
        return Detections(
            self.boxes[row],
            self.scores[row],
            self.labels[row],
            self.present[row],
            None if self.masks is None else self.masks[row],
        )
