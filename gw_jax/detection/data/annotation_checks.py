"""One annotation of COCO's format, checked and converted; what cannot be used is refused, or dropped and counted."""

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from gw_jax.detection.data.outlines import outlines
from gw_jax.detection.rle import decode_mask
from gw_jax.errors import shown

# Reasons for which an object, or a part of its polygon, is dropped, as the report names them.
NO_AREA = "objects with a side of at most 1 pixel"
OUTSIDE = "objects outside of their image"
SHORT_PART = "polygons of fewer than 3 points"
NO_PART = "objects of which no polygon was left"
EMPTY_MASK = "objects with an empty mask"
# Larger coordinates make pycocotools, whose integers have 32 bits, allocate gigabytes or fail.
_MAX_COORDINATE = 1_000_000
_LEAST_NUMBERS = 6


Box = tuple[float, float, float, float]


class AnnotationError(ValueError):
    """Why an annotation makes its file unusable.

    Args:
        problem: what is wrong, as a plural with "annotations" as its subject; those of one problem are counted.
        detail: the value that was found.
    """

    def __init__(self, problem: str, detail: str):
        super().__init__(problem, detail)
        self.problem, self.detail = problem, detail


class Found(NamedTuple):
    """An object of an image.

    Attributes:
        box: x1 y1 x2 y2 with inclusive ends, inside the image; None if the object is not trained on: a crowd, or dropped.
        polygons: its parts, float64 ``x y x y ...`` each.
        evaluated: the annotation as pycocotools needs it, with the keys "bbox", "area", "iscrowd" and, if it has a mask,
            "segmentation"; None if it is no object at all.
    """

    box: Box | None
    polygons: list[np.ndarray]
    evaluated: dict[str, Any] | None


def read_annotation(annotation: dict[str, Any], height: int, width: int, dropped: Counter[str]) -> Found:
    """Checks the box and the mask of one annotation.

    Args:
        annotation: a dict of the file.
        height: of its image.
        width: of its image.
        dropped: counts what is dropped, by reason.

    Raises:
        AnnotationError: it has no box, or a value that makes results wrong.
    """
    bbox = _box(annotation.get("bbox"))
    crowd = _crowd(annotation.get("iscrowd", 0))
    given = annotation.get("segmentation")
    polygons: list[np.ndarray] = []
    pixels, kept = None, None  # type: tuple[int | None, Any]
    if isinstance(given, dict):
        try:
            mask = decode_mask(given, height, width)
        except ValueError as error:
            raise AnnotationError("have a mask that cannot be used", str(error)) from error
        pixels, kept = int(mask.sum()), {"size": [height, width], "counts": given["counts"]}
        if not pixels:
            dropped[EMPTY_MASK] += 1
            return Found(None, [], None)
        polygons = [] if crowd else [np.array(part, np.float64) for part in outlines(mask)]
    elif given:
        polygons = _polygons(given, dropped)
        if not polygons:
            dropped[NO_PART] += 1
            return Found(None, [], None)
        kept = [part for part in given if len(part) >= _LEAST_NUMBERS]
    evaluated: dict[str, Any] = {"bbox": bbox, "area": _area(annotation.get("area")), "iscrowd": int(crowd)}
    if evaluated["area"] is None:
        evaluated["area"] = pixels or sum(map(_polygon_area, polygons)) or bbox[2] * bbox[3]
    if kept is not None:
        evaluated["segmentation"] = kept
    box = None if crowd else _clipped(bbox, height, width, dropped)
    return Found(box, polygons if box else [], evaluated)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number of JSON."""
    return type(value) in (int, float) and math.isfinite(value)


def _box(bbox: Any) -> list[float]:
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise AnnotationError("have no 'bbox' of 4 numbers, x, y, width and height", shown(bbox))
    if not all(map(is_number, bbox)) or max(map(abs, bbox)) > _MAX_COORDINATE:
        raise AnnotationError(
            f"have a 'bbox' with values that are no finite numbers up to {_MAX_COORDINATE:,}", shown(bbox)
        )
    return bbox


def _crowd(value: Any) -> bool:
    if value not in (0, 1):
        raise AnnotationError("have an 'iscrowd' that is neither 0 nor 1", shown(value))
    return bool(value)


def _area(value: Any) -> float | None:
    """The area that decides whether an object is small, medium or large; None where the file has none."""
    if value is not None and (not is_number(value) or value < 0):
        raise AnnotationError("have an 'area' that is no finite number from 0 on", shown(value))
    return value


def _clipped(bbox: list[float], height: int, width: int, dropped: Counter[str]) -> Box | None:
    """The box with inclusive ends in the image, as in the reference; None without area."""
    x, y, w, h = bbox
    x1, x2 = (min(max(value, 0.0), width - 1.0) for value in (x, x + max(w - 1, 0)))
    y1, y2 = (min(max(value, 0.0), height - 1.0) for value in (y, y + max(h - 1, 0)))
    if x2 > x1 and y2 > y1:
        return x1, y1, x2, y2
    dropped[NO_AREA if w <= 1 or h <= 1 else OUTSIDE] += 1
    return None


def _polygons(given: Any, dropped: Counter[str]) -> list[np.ndarray]:
    if not isinstance(given, list) or not all(isinstance(part, list) for part in given):
        raise AnnotationError(
            "have a 'segmentation' that is neither a list of polygons, each a list x, y, x, y ..., nor an RLE", shown(given)
        )
    parts = []
    for part in given:
        try:
            numbers = np.array(part)
        except ValueError:  # Lists of different lengths.
            numbers = np.array("")
        if numbers.dtype.kind not in "iuf" or numbers.ndim != 1 or not (abs(numbers) <= _MAX_COORDINATE).all():
            raise AnnotationError(
                f"have polygons with values that are no finite numbers up to {_MAX_COORDINATE:,}", shown(part)
            )
        if len(numbers) % 2:
            raise AnnotationError("have polygons with an odd number of coordinates", f"{len(numbers)} numbers")
        if len(numbers) < _LEAST_NUMBERS:
            dropped[SHORT_PART] += 1
        else:
            parts.append(numbers.astype(np.float64))
    return parts


def _polygon_area(part: np.ndarray) -> float:
    x, y = part[::2], part[1::2]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
