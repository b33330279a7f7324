"""The evaluation of a detector on a prepared set: results in COCO's format, in a file and as average precision."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from gw_jax.detection.coco_metrics import coco_metrics, read_annotations
from gw_jax.detection.coco_results import Result, coco_results, not_finite
from gw_jax.detection.data.scenes import Scenes
from gw_jax.detection.detection_files import DetectionFiles
from gw_jax.errors import ConfigError, DataError
from gw_jax.train.distributed import run_on_main, wait_for_everyone
from gw_jax.train.mesh import local_rows


class CocoEvaluator:
    """Average precision of detections by pycocotools; an :class:`gw_jax.train.task.Evaluator`.

    Each process makes results in COCO's format of the images that it evaluated: boxes and masks in the original image. The
    first one merges them in the order of the set, checks that every image was evaluated once, and writes
    ``detections-STEP.json``. An image that cannot be read counts as one without detections.

    Args:
        scenes: the set.
        workdir: the work directory, which all processes share; None for no file, in a single process.
        step: of the evaluated weights, for the name of the file.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection import Detections
        >>> from gw_jax.detection.coco_evaluator import CocoEvaluator
        >>> from gw_jax.detection.data.scenes import open_scenes
        >>> scenes = open_scenes("digit_scenes", training=False)
        >>> evaluator = CocoEvaluator(scenes)
        >>> nothing = Detections(np.zeros((1, 1, 4)), np.zeros((1, 1)), np.zeros((1, 1), int), np.zeros((1, 1), bool), None)
        >>> for index in range(len(scenes.evaluation)):
        ...     size = scenes.evaluation.sizes[[index]]
        ...     batch = {"index": np.array([index]), "mask": np.array([True]), "size": size, "original_size": size}
        ...     evaluator.add({"detections": nothing, "batch": batch})
        >>> evaluator.result()["eval/box_ap"]
        0.0
    """

    def __init__(self, scenes: Scenes, workdir: pathlib.Path | None = None, step: int = 0):
        if workdir is None and jax.process_count() > 1:
            raise ConfigError("An evaluation by several processes needs a work directory that they share; give workdir.")
        self._scenes = scenes
        self._files = None if workdir is None else DetectionFiles(workdir, step)
        self._category_ids = [category.id for category in scenes.categories]
        # By the image's place in the set: whether it could be read, and its results as JSON, which takes less memory.
        self._images: dict[int, tuple[bool, str]] = {}
        self._masks = False
        self._waiting: list[Any] = []

    def add(self, outputs: Any) -> None:
        """Adds a batch.

        The results of the batch before are made meanwhile, so that the devices do not wait for the host.

        Args:
            outputs: ``{"detections": Detections, "batch": {"index", "mask", "size", "original_size"}}``, perhaps with
                ``finite`` bool ``[n]``, false where the features of an image are not finite. ``index`` int32 ``[n]`` is the
                place in the set, -1 for padding; ``mask`` bool ``[n]`` is false for padding and for images that could not
                be read.

        Raises:
            DataError: an image came before.
            TrainingError: detections that are not finite.
        """
        self._waiting.append(outputs)
        if len(self._waiting) > 1:
            self._convert(self._waiting.pop(0))

    def result(self) -> dict[str, float]:
        """The metrics of :func:`gw_jax.detection.coco_metrics.coco_metrics`, and ``eval/count``, the images read.

        Raises:
            DataError: images are missing or came twice, or nothing counts.
            TrainingError: detections that are not finite, or results that cannot be exchanged between processes.
        """
        while self._waiting:
            self._convert(self._waiting.pop(0))
        if jax.process_count() > 1:
            assert self._files is not None
            self._files.write_part(self._images)
            wait_for_everyone("detections of all processes")
        return run_on_main("detections evaluated", self._evaluate)

    def _convert(self, outputs: Any) -> None:
        rows = local_rows(outputs)
        batch, detections = rows["batch"], rows["detections"]
        self._masks = detections.masks is not None
        for row, (place, readable) in enumerate(zip(batch["index"].tolist(), batch["mask"].tolist(), strict=True)):
            if place < 0:
                continue
            if place in self._images:
                raise _came_twice(self._scenes, place)
            results = []
            if readable:
                image_id = int(self._scenes.evaluation.image_ids[place])
                if "finite" in rows and not rows["finite"][row]:
                    raise not_finite(image_id)
                sizes = batch["size"][row].tolist(), batch["original_size"][row].tolist()
                results = coco_results(detections.of_image(row), *sizes, image_id, self._category_ids)
            self._images[place] = readable, json.dumps(results)

    def _evaluate(self) -> dict[str, float]:
        """In the first process, with the results of all."""
        images = self._images
        if jax.process_count() > 1:
            assert self._files is not None
            images = {}
            for place, image in self._files.read_parts(jax.process_count()):
                if place in images:
                    raise _came_twice(self._scenes, place)
                images[place] = image
        image_ids = [int(image_id) for image_id in self._scenes.evaluation.image_ids]
        if missing := sorted({*range(len(image_ids))} - {*images}):
            raise DataError(
                f"{len(missing)} of the {len(image_ids)} images of the evaluation were not evaluated, such as image "
                f"{image_ids[missing[0]]}."
            )
        count = sum(readable for readable, _ in images.values())
        if not count:
            raise DataError(f"None of the {len(image_ids)} images of the evaluation could be read.")
        texts = [images[place][1] for place in range(len(image_ids))]
        metrics = coco_metrics(read_annotations(self._scenes.annotations), _Results(texts), image_ids, masks=self._masks)
        if self._files is not None:
            self._files.write(texts, metrics["eval/box_ap"])
        return {**metrics, "eval/count": count}


class _Results:
    """Results that are made of their JSON whenever they are iterated: all of them at a time would take gigabytes."""

    def __init__(self, texts: Sequence[str]):
        self._texts = texts

    def __iter__(self) -> Iterator[Result]:
        for text in self._texts:
            yield from json.loads(text)


def _came_twice(scenes: Scenes, place: int) -> DataError:
    return DataError(f"Image {scenes.evaluation.image_ids[place]} of the evaluation came twice; each must come once.")
