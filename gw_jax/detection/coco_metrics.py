"""Average precision of results in COCO's format, by pycocotools with its default parameters."""

import contextlib
import io
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gw_jax.detection.coco_results import Result
from gw_jax.errors import DataError, one_line, raise_missing_package, shown

# The first six numbers of pycocotools' summary: IoU 0.50 to 0.95, 0.50, 0.75, and objects by their area in pixels.
_SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def require_pycocotools() -> None:
    """Raises ConfigError if pycocotools is not installed: a run must not find that out at its first evaluation."""
    try:
        import pycocotools  # noqa: F401
    except ImportError as error:
        raise_missing_package(error, "Evaluating detections", "detection")


def read_annotations(path: str | os.PathLike[str]) -> Any:
    """The annotations of an evaluation as a ``pycocotools.coco.COCO``.

    Raises:
        ConfigError: pycocotools is not installed.
        DataError: the file cannot be read, or is none of annotations in COCO's format.
    """
    require_pycocotools()
    from pycocotools.coco import COCO

    try:
        with _silence():
            annotations = COCO(os.fspath(path))
        if not all(isinstance(annotations.dataset.get(name), list) for name in ("images", "annotations", "categories")):
            raise ValueError("it needs the lists images, annotations and categories")
    except Exception as error:  # pycocotools raises what it meets in the file.
        raise DataError(
            f"{one_line(os.fspath(path), 200)} cannot be read as annotations in COCO's format ({type(error).__name__}: "
            f"{one_line(str(error), 200)})."
        ) from error
    return annotations


def coco_metrics(annotations: Any, results: Iterable[Result], image_ids: Iterable[int], *, masks: bool) -> dict[str, float]:
    """Average precision of ``results`` on the images ``image_ids``, which count even without results.

    Boxes: ``eval/box_ap`` (mean over IoU 0.50 to 0.95), ``box_ap50``, ``box_ap75``, ``box_ap_small``, ``box_ap_medium``,
    ``box_ap_large``, and ``ap/CATEGORY``. Masks: the same six as ``eval/mask_ap``, .... At most 100 detections of an image
    count. A number for which there are no objects, such as that of a size or of a category, is left out. The size of a
    detected mask is its own area, as in the reference, not that of its box.

    Args:
        annotations: of :func:`read_annotations`.
        results: of :func:`gw_jax.detection.coco_results.coco_results`; iterated several times, not kept.
        image_ids: of the images that were evaluated.
        masks: whether masks are evaluated, too. Left out where an annotated object has no mask.

    Raises:
        ConfigError: pycocotools is not installed.
        DataError: results or images of another set, or a set without objects.
    """
    ids = sorted(image_ids)
    _check(annotations, results, ids)
    boxes = ({name: result[name] for name in ("image_id", "category_id", "bbox", "score")} for result in results)
    evaluation = _evaluate(annotations, boxes, ids, "bbox")
    metrics = _summary("box", evaluation)
    if "eval/box_ap" not in metrics:
        raise DataError(
            f"The {len(ids)} images to evaluate on have no objects beside crowds, so there is no average precision. "
            "Evaluate on images with objects."
        )
    names = _category_names(annotations)
    for index, category in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, index, 0, -1]
        if (precision > -1).any():
            metrics[f"ap/{names[category]}"] = float(precision[precision > -1].mean())
    del evaluation
    if masks and all(annotation.get("segmentation") for annotation in annotations.anns.values()):
        # Without boxes: with them, pycocotools takes the box's area for the mask's.
        parts = (
            {name: result[name] for name in ("image_id", "category_id", "segmentation", "score")} for result in results
        )
        metrics |= _summary("mask", _evaluate(annotations, parts, ids, "segm"))
    return metrics


def evaluate_file(results: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> dict[str, float]:
    """The metrics of a stored ``detections-STEP.json`` on all images of the annotations; see :func:`coco_metrics`.

    Raises:
        ConfigError: pycocotools is not installed.
        DataError: a file cannot be read, or they belong to different sets.
    """
    truth = read_annotations(annotations)
    try:
        stored = json.loads(pathlib.Path(results).read_bytes())
        if not isinstance(stored, list) or not all({"image_id", "category_id", "bbox", "score"} <= {*r} for r in stored):
            raise ValueError("it needs a list of objects with image_id, category_id, bbox and score")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{one_line(os.fspath(results), 200)} cannot be read as results in COCO's format ({type(error).__name__}: "
            f"{one_line(str(error), 200)})."
        ) from error
    return coco_metrics(truth, stored, truth.getImgIds(), masks=bool(stored) and all("segmentation" in r for r in stored))


def _check(annotations: Any, results: Iterable[Result], image_ids: Sequence[int]) -> None:
    if missing := [image_id for image_id in image_ids if image_id not in annotations.imgs]:
        raise DataError(
            f"The annotations do not have the image {shown(missing[0])} ({len(missing)} of {len(image_ids)} are missing): "
            "they belong to another set."
        )
    known = set(image_ids)
    for name, allowed in (("image_id", known), ("category_id", annotations.cats.keys())):
        wrong = [result[name] for result in results if result[name] not in allowed]
        if wrong:
            raise DataError(
                f"The detections belong to another set: {name} {shown(wrong[0])} is not among the annotations' "
                f"({len(wrong)} detections)."
            )


def _evaluate(annotations: Any, results: Iterator[Result], image_ids: list[int], kind: str) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = list(results)
    with _silence():
        if found:
            detections = annotations.loadRes(found)
        else:
            # loadRes fails on an empty list.
            detections = COCO()
            detections.dataset = {**annotations.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(annotations, detections, kind)
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _summary(kind: str, evaluation: Any) -> dict[str, float]:
    """The numbers of pycocotools' summary; it has -1 where there are no objects."""
    values = dict(zip(_SUMMARY, np.asarray(evaluation.stats).tolist(), strict=False))
    return {f"eval/{kind}_{name}": value for name, value in values.items() if value > -1}


def _category_names(annotations: Any) -> dict[int, str]:
    """The name of each category; with its id where several have the same."""
    names = {category: one_line(str(entry.get("name", category)), 60) for category, entry in annotations.cats.items()}
    counts = Counter(names.values())
    return {category: name if counts[name] == 1 else f"{name} ({category})" for category, name in names.items()}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
