"""Ground truth of a batch as arrays of fixed size."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax.detection.polygons import count_edges, pad_polygons
from gw_jax.errors import shown
from gw_jax.ops.checks import require_integer

Targets = Mapping[str, jax.Array]

# Of train2017, the image with the most objects has 93.
MAX_OBJECTS = 100


def pad_targets(
    boxes: Sequence[Any],
    labels: Sequence[Any],
    polygons: Sequence[Any] | None = None,
    *,
    num_classes: int = 81,
    max_objects: int = MAX_OBJECTS,
    max_edges: int | None = None,
) -> dict[str, np.ndarray]:
    """The ground truth of a batch, padded: the ``targets`` of :func:`detector_losses`.

    Args:
        boxes: for each of ``n`` images the boxes ``[k, 4]``, ``x1 y1 x2 y2`` with inclusive ends, in pixels of the
            network's input; ``k`` may be 0.
        labels: for each image the classes ``[k]``, 1 to ``num_classes - 1``.
        polygons: for each image and object the parts, ``x y x y ...`` each; None without a mask head.
        num_classes: with the background.
        max_objects: the size to which objects are padded.
        max_edges: the size to which the edges of an object's polygons are padded; None for the largest number there is,
            rounded up to a multiple of 64.

    Returns:
        ``boxes`` float32 ``[n, max_objects, 4]``, ``labels`` int32 ``[n, max_objects]``, ``present`` bool
        ``[n, max_objects]``; with polygons also ``edges`` float32 ``[n, max_objects, max_edges, 4]`` and ``parts`` int32
        ``[n, max_objects, max_edges]``, as of :func:`gw_jax.detection.polygons.pad_polygons`.

    Raises:
        ValueError: more objects or edges than there is room for, a box without area, a value that is not finite, a label
            out of range, or lists of different lengths; the message names the image. ``max_objects`` is no integer of at
            least 0.

    Example:
        >>> from gw_jax.detection import pad_targets
        >>> targets = pad_targets([[[10, 20, 50, 60]], []], [[3], []], max_objects=4)
        >>> targets["boxes"].shape, targets["present"].sum(1).tolist()
        ((2, 4, 4), [1, 0])
    """
    if len(labels) != len(boxes) or (polygons is not None and len(polygons) != len(boxes)):
        raise ValueError(
            f"Boxes are of {len(boxes)} images, labels of {len(labels)}"
            f"{'' if polygons is None else f', polygons of {len(polygons)}'}; one entry per image is needed in each."
        )
    if not len(boxes):
        raise ValueError("pad_targets got no images; at least one is needed, whose list of boxes may be empty.")
    max_objects = require_integer("max_objects", max_objects, 1)
    num_classes = require_integer("num_classes", num_classes, 2)
    result = {
        "boxes": np.zeros((len(boxes), max_objects, 4), np.float32),
        "labels": np.zeros((len(boxes), max_objects), np.int32),
        "present": np.zeros((len(boxes), max_objects), bool),
    }
    for index in range(len(boxes)):
        found, classes = _boxes(index, boxes[index]), _labels(index, labels[index])
        _check(index, found, classes, num_classes, max_objects)
        count = len(found)
        result["boxes"][index, :count] = found
        result["labels"][index, :count] = classes
        result["present"][index, :count] = True
    if polygons is not None:
        if max_edges is None:
            max_edges = -(-max([1, *map(count_edges, polygons)]) // 64) * 64
        padded = []
        for index, image in enumerate(polygons):
            if len(image) != result["present"][index].sum():
                raise ValueError(
                    f"Image {index} has {result['present'][index].sum()} boxes and polygons of {len(image)} objects; one "
                    "list of parts per box is needed."
                )
            try:
                padded.append(pad_polygons(image, max_objects=max_objects, max_edges=max_edges))
            except ValueError as error:
                raise ValueError(f"Image {index}: {error}") from error
        result["edges"] = np.stack([edges for edges, _ in padded])
        result["parts"] = np.stack([parts for _, parts in padded])
    return result


def _boxes(index: int, boxes: Any) -> np.ndarray:
    try:
        found = np.asarray(boxes, np.float32)
    except (TypeError, ValueError):
        found = np.zeros(1, np.float32)
    if found.size and found.shape[1:] != (4,):
        raise ValueError(f"Image {index} has the boxes {shown(boxes)}; a list of x1, y1, x2, y2 per object is needed.")
    return found.reshape(-1, 4)


def _labels(index: int, labels: Any) -> np.ndarray:
    try:
        found = np.asarray(labels)
    except ValueError:
        found = np.zeros((), object)
    if found.ndim != 1 or found.dtype.kind not in "iuf":
        raise ValueError(f"Image {index} has the labels {shown(labels)}; a list of integers, one per box, is needed.")
    return found


def _check(index: int, boxes: np.ndarray, labels: np.ndarray, num_classes: int, max_objects: int) -> None:
    if len(labels) != len(boxes):
        raise ValueError(f"Image {index} has {len(boxes)} boxes and {len(labels)} labels; one label per box is needed.")
    if len(boxes) > max_objects:
        raise ValueError(
            f"Image {index} has {len(boxes)} objects, and there is room for max_objects={max_objects}; choose a larger "
            "number."
        )
    for box, label in zip(boxes, labels, strict=True):
        if not np.isfinite(box).all():
            raise ValueError(f"Image {index} has the box {box.tolist()}; finite numbers are needed.")
        if box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(
                f"Image {index} has the box {box.tolist()} (x1, y1, x2, y2), which has no area; x2 > x1 and y2 > y1 are "
                "needed. Leave the object out."
            )
        if not 1 <= label < num_classes or label != int(label):
            raise ValueError(
                f"Image {index} has the label {shown(label.item())}; 1 to {num_classes - 1} are allowed, 0 is the "
                "background."
            )


def check_targets(targets: Targets, images: int, *, masks: bool, num_classes: int | None = None) -> dict[str, jax.Array]:
    """The arrays of ``targets`` that the losses need.

    Raises:
        ValueError: one is missing, or of another shape or type; or they are not traced, and a label is none of
            ``num_classes``.
    """
    if not isinstance(targets, Mapping):
        raise ValueError(f"targets is a {type(targets).__name__}; a dict is needed, as made by pad_targets.")
    needed = {"boxes": 4, "labels": None, "present": None, **({"edges": 4, "parts": None} if masks else {})}
    missing = [name for name in needed if name not in targets]
    if missing:
        what = "a detector with a mask head needs polygons" if {"edges", "parts"} & set(missing) else "see pad_targets"
        raise ValueError(f"targets has {', '.join(targets) or 'nothing'}, but not {', '.join(missing)}; {what}.")
    arrays = {name: jnp.asarray(targets[name]) for name in needed}
    objects = arrays["boxes"].shape[1] if arrays["boxes"].ndim == 3 else -1
    if not objects:
        raise ValueError("targets has room for 0 objects; 1 is needed at least. Call pad_targets with max_objects=1.")
    edges = arrays["edges"].shape[2] if masks and arrays["edges"].ndim == 4 else -1
    expected = {
        "boxes": (images, objects, 4),
        "labels": (images, objects),
        "present": (images, objects),
        "edges": (images, objects, edges, 4),
        "parts": (images, objects, edges),
    }
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise ValueError(
                f"targets[{name!r}] has shape {array.shape}; for {images} images it must be {expected[name]}, as made by "
                "pad_targets."
            )
    for name, kind, word in (("labels", jnp.integer, "integers"), ("present", jnp.bool_, "bool")):
        if not jnp.issubdtype(arrays[name].dtype, kind):
            raise ValueError(
                f"targets[{name!r}] is of type {arrays[name].dtype}; it must be {word}, as made by pad_targets."
            )
    if num_classes is not None and not any(isinstance(targets[name], jax.core.Tracer) for name in ("labels", "present")):
        labels = np.asarray(targets["labels"])[np.asarray(targets["present"])]
        if labels.size and not 1 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"targets has labels from {labels.min()} to {labels.max()}, and the detector has the classes 1 to "
                f"{num_classes - 1}. Call pad_targets with num_classes={num_classes}."
            )
    return arrays
