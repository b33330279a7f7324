"""Detections as results in COCO's format: boxes and masks in the original image, with the original category ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gw_jax.detection.detections import Detections
from gw_jax.detection.paste import paste_region
from gw_jax.detection.rle import encode_region
from gw_jax.errors import TrainingError

Result = dict[str, Any]


def original_boxes(boxes: Any, size: Any, original_size: Any) -> np.ndarray:
    """Boxes of a resized image in its original: float32, multiplied by the ratios of the sides.

    Args:
        boxes: ``[k, 4]``, x1 y1 x2 y2, both ends inclusive.
        size: (height, width) of the resized image, without padding.
        original_size: (height, width) of the original.

    Source: ``BoxList.resize`` of the reference.

    Example:
        >>> from gw_jax.detection.coco_results import original_boxes
        >>> original_boxes([[10, 20, 29, 39]], (100, 200), (50, 50)).tolist()
        [[2.5, 10.0, 7.25, 19.5]]
    """
    (height, width), (original_height, original_width) = size, original_size
    ratios = [original_width / width, original_height / height] * 2
    return np.asarray(boxes, np.float32) * np.asarray(ratios, np.float32)


def coco_results(
    detections: Detections, size: Any, original_size: Any, image_id: int, category_ids: Sequence[int]
) -> list[Result]:
    """The detections of one image as results in COCO's format, in their order.

    A box is ``x1 y1 w h`` of the box in the original image, with ``w = x2 - x1 + 1``. A mask is pasted into the original
    image and encoded before the next one is made, so that their number takes no memory.

    Args:
        detections: of one image: arrays without the leading axis of :class:`Detections`.
        size: (height, width) of the image as the network saw it, without padding.
        original_size: (height, width) of the original.
        image_id: of the results.
        category_ids: the category of label ``i`` is ``category_ids[i - 1]``.

    Returns:
        Dicts with ``image_id``, ``category_id``, ``bbox`` and ``score``, and ``segmentation`` where there are masks.

    Raises:
        ConfigError: pycocotools is not installed, and there are masks.
        TrainingError: a box, score or mask is not finite.

    Source: ``prepare_for_coco_detection`` and ``prepare_for_coco_segmentation`` of the reference.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection import Detections
        >>> from gw_jax.detection.coco_results import coco_results
        >>> one = Detections(np.array([[4, 4, 7, 9]]), np.array([0.5]), np.array([2]), np.array([True]), None)
        >>> coco_results(one, (20, 20), (10, 10), 7, [1, 18])
        [{'image_id': 7, 'category_id': 18, 'bbox': [2.0, 2.0, 2.5, 3.5], 'score': 0.5}]
    """
    present = np.asarray(detections.present, bool)
    boxes = original_boxes(np.asarray(detections.boxes)[present], size, original_size)
    scores = np.asarray(detections.scores, np.float32)[present]
    labels = np.asarray(detections.labels)[present]
    masks = None if detections.masks is None else np.asarray(detections.masks)[present]
    if not all(np.isfinite(values).all() for values in (boxes, scores, masks) if values is not None):
        raise not_finite(image_id)
    sides = boxes[:, 2:] - boxes[:, :2] + np.float32(1)
    results = []
    for index, (box, side, score, label) in enumerate(zip(boxes, sides, scores, labels, strict=True)):
        result: Result = {
            "image_id": int(image_id),
            "category_id": int(category_ids[int(label) - 1]),
            "bbox": [*box[:2].tolist(), *side.tolist()],
            "score": float(score),
        }
        if masks is not None:
            height, width = map(int, original_size)
            region = paste_region(masks[index], box, (height, width))
            result["segmentation"] = encode_region(*region, (height, width))
        results.append(result)
    return results


def not_finite(image_id: int) -> TrainingError:
    """The error for an image whose detections are not finite."""
    return TrainingError(
        f"The network's features or detections for image {image_id} are not finite: it has diverged, or its weights are "
        "damaged. Use an earlier checkpoint, or train with a lower config.optimizer.learning_rate in another --workdir."
    )
