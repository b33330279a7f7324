"""A split of annotated images, read from files in COCO's format and checked."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from gw_jax.detection.data.annotation_checks import AnnotationError, Box, Found, read_annotation
from gw_jax.detection.data.coco_file import (
    Category,
    CocoFile,
    ImageEntry,
    Problems,
    display,
    fields_of,
    is_id,
    no_collection,
)
from gw_jax.detection.data.packed import Objects, pack
from gw_jax.errors import DataError, shown

# Reasons for which an image is not trained on, as the report names them.
NO_ANNOTATION = "images without annotations"
ONLY_CROWDS = "images of which all annotations are crowds"
NO_OBJECT = "images of which all objects were dropped"


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image and its objects.

    Attributes:
        image_id: its id in the annotations.
        file_name: as the annotations have it.
        path: of the file.
        height: as annotated, in pixels.
        width: as annotated.
        num_objects: without crowds.
        num_parts: the largest number of polygons of an object.
        num_edges: the largest number of edges of an object.
        objects: packed; see :mod:`gw_jax.detection.data.packed`.
        digest: SHA-256 of the file; empty before it was read.
    """

    image_id: int
    file_name: str
    path: pathlib.Path
    height: int
    width: int
    num_objects: int
    num_parts: int
    num_edges: int
    objects: bytes
    digest: bytes = b""


@dataclasses.dataclass
class Split:
    """Images of one or more files.

    Attributes:
        categories: in ascending order of their ids; label ``i + 1`` is category ``i``.
        images: in ascending order of their ids.
        num_crowds: annotations that are crowds.
        objects_without_mask: objects without polygon or RLE; of an evaluation, all annotations without them.
        objects_of: objects by label.
        dropped: objects and polygons that were dropped, by reason.
        dropped_images: images that are not trained on, by reason.
        annotations: of an evaluation, what pycocotools reads.
        digests: of the JSON files.
    """

    categories: tuple[Category, ...]
    images: list[AnnotatedImage]
    num_crowds: int
    objects_without_mask: int
    objects_of: Counter[int]
    dropped: Counter[str]
    dropped_images: Counter[str]
    annotations: dict[str, Any] | None
    digests: list[str]

    def has_object_to_find(self) -> bool:
        """Whether an evaluation has an annotation that is no crowd."""
        return any(not annotation["iscrowd"] for annotation in (self.annotations or {}).get("annotations", ()))


def read_coco(
    files: Sequence[tuple[pathlib.Path, pathlib.Path]], flag: str, *, training: bool, keep_empty: bool = False
) -> Split:
    """Reads and checks annotations; files of images are not opened.

    Crowds are no objects; they are kept for the evaluation. Boxes have inclusive ends and are clipped to their image; those
    without area are dropped, as in the reference. Masks become polygons.

    Args:
        files: pairs of a JSON file and the folder of its images, such as both parts of COCO's training images of 2014.
        flag: the option that gave them, for messages.
        training: drops images without objects, and keeps no annotations for the evaluation.
        keep_empty: keeps these images in training.

    Raises:
        DataError: a file that cannot be read or is not in COCO's format; ids that are missing, there twice or unknown;
            values that make results wrong; files with different categories; no image left.
    """
    split: Split | None = None
    for path, folder in files:
        part = _read_file(CocoFile(path, folder, flag), training=training, keep_empty=keep_empty)
        split = part if split is None else _merged(split, part, files[0][0], path)
    assert split is not None
    if not split.images:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in split.dropped_images.items())
        raise DataError(
            f"{flag} {display(files[0][0])} has no image to train on: {reasons}. Images without objects can be trained on "
            "beside others, with --keep_empty."
        )
    if not training and not split.has_object_to_find():
        raise DataError(
            f"{flag} {display(files[0][0])} has no object to find, only images and crowds; its average precision would not "
            "be defined."
        )
    split.images.sort(key=lambda image: image.image_id)
    return split


def _merged(first: Split, second: Split, first_path: pathlib.Path, second_path: pathlib.Path) -> Split:
    check_categories(first.categories, second.categories, first_path, second_path)
    ids = {image.image_id for image in first.images}
    if both := [image.image_id for image in second.images if image.image_id in ids]:
        raise DataError(
            f"{len(both):,} ids of images in {display(second_path)} are in another file given before it, too, the first is "
            f"{both[0]}. Images of a split need different ids: renumber those of one file."
        )
    return Split(
        categories=first.categories,
        images=first.images + second.images,
        num_crowds=first.num_crowds + second.num_crowds,
        objects_without_mask=first.objects_without_mask + second.objects_without_mask,
        objects_of=first.objects_of + second.objects_of,
        dropped=first.dropped + second.dropped,
        dropped_images=first.dropped_images + second.dropped_images,
        annotations=None,
        digests=first.digests + second.digests,
    )


def check_categories(
    first: Sequence[Category], second: Sequence[Category], first_path: pathlib.Path, second_path: pathlib.Path
) -> None:
    """Raises DataError unless both files have the same categories with the same ids."""
    if difference := sorted(set(first) ^ set(second)):
        category = difference[0]
        owner, other = (first_path, second_path) if category in first else (second_path, first_path)
        raise DataError(
            f"{display(first_path)} and {display(second_path)} have different categories: only {display(owner)} has the "
            f"category {shown(category.name)} with the id {category.id}, not {display(other)}. Ids and names must be the "
            "same in all files."
        )


def _read_file(file: CocoFile, *, training: bool, keep_empty: bool) -> Split:
    reader = _Reader(file, keep_evaluated=not training)
    with no_collection():
        for number, annotation in enumerate(file.annotations):
            # Frees the memory of what was read: that of a large file is several gigabytes.
            file.annotations[number] = None
            reader.add(number, annotation)
    reader.problems.raise_first()
    images, dropped_images, objects_of = [], Counter[str](), Counter[int]()
    for key in sorted(file.images):
        objects = reader.objects.pop(key, [])
        if training and not objects and not keep_empty:
            dropped_images[reader.why_empty(key)] += 1
            continue
        images.append(_packed(file.images[key], objects))
        objects_of.update(label for label, _, _ in objects)
        if training:
            reader.without_mask += sum(not polygons for _, _, polygons in objects)
    return Split(
        categories=file.categories,
        images=images,
        num_crowds=sum(reader.crowds.values()),
        objects_without_mask=reader.without_mask,
        objects_of=objects_of,
        dropped=reader.dropped,
        dropped_images=dropped_images,
        annotations=None if training else _annotations(file, reader.evaluated),
        digests=[file.digest],
    )


class _Reader:
    """Annotations of one file, checked one by one.

    Attributes:
        objects: by image, label, box and polygons of each.
        crowds: their number by image.
        evaluated: all annotations for pycocotools.
        without_mask: those of ``evaluated`` without a mask.
        dropped: what was dropped, by reason.
        problems: what makes the file unusable.
    """

    def __init__(self, file: CocoFile, *, keep_evaluated: bool):
        self._file, self._keep_evaluated = file, keep_evaluated
        self._labels = {category.id: label for label, category in enumerate(file.categories, start=1)}
        self._ids: set[int | str] = set()
        self._annotated: set[int] = set()
        self.objects: dict[int, list[tuple[int, Box, list[np.ndarray]]]] = {}
        self.crowds, self.dropped = Counter[int](), Counter[str]()
        self.evaluated: list[dict[str, Any]] = []
        self.without_mask = 0
        self.problems = Problems(file.path, "annotations")

    def add(self, number: int, annotation: Any) -> None:
        """Reads the annotation at position ``number`` of the file."""
        if not isinstance(annotation, dict):
            self.problems.add("are no objects", f"number {number}: {shown(annotation)}")
            return
        key, image_id, category_id = fields_of(annotation, "id", "image_id", "category_id")
        where = f"number {number}" if key is None else f"annotation {shown(key)}"
        image = self._file.images.get(image_id) if is_id(image_id) else None
        label = self._labels.get(category_id) if is_id(category_id) else None
        if key is not None and not isinstance(key, int | str):
            self.problems.add("have an 'id' that is no integer", where)
        elif key is not None and key in self._ids:
            self.problems.add("have the id of another one", where)
        elif image is None:
            self.problems.add("belong to an unknown image", f"{where} with the image_id {shown(image_id)}")
        elif label is None:
            self.problems.add("have an unknown category", f"{where} with the category_id {shown(category_id)}")
        else:
            if key is not None:
                self._ids.add(key)
            try:
                found = read_annotation(annotation, image.height, image.width, self.dropped)
            except AnnotationError as error:
                self.problems.add(error.problem, f"{where}: {error.detail}")
                return
            self._annotated.add(image.id)
            self._keep(key, image.id, category_id, label, found)

    def _keep(self, key: Any, image_id: int, category_id: int, label: int, found: Found) -> None:
        if found.box is not None:
            self.objects.setdefault(image_id, []).append((label, found.box, found.polygons))
        if found.evaluated is None:
            return
        self.crowds[image_id] += found.evaluated["iscrowd"]
        if self._keep_evaluated:
            self.without_mask += "segmentation" not in found.evaluated
            self.evaluated.append({"id": key, "image_id": image_id, "category_id": category_id, **found.evaluated})

    def why_empty(self, image_id: int) -> str:
        """The reason for which an image has no objects."""
        if image_id not in self._annotated:
            return NO_ANNOTATION
        return ONLY_CROWDS if self.crowds[image_id] else NO_OBJECT


def _packed(image: ImageEntry, objects: Sequence[tuple[int, Box, list[np.ndarray]]]) -> AnnotatedImage:
    polygons = [parts for _, _, parts in objects]
    boxes = np.array([box for _, box, _ in objects], np.float64).reshape(-1, 4)
    labels = np.array([label for label, _, _ in objects], np.int32)
    return AnnotatedImage(
        image_id=image.id,
        file_name=image.file_name,
        path=image.path,
        height=image.height,
        width=image.width,
        num_objects=len(objects),
        num_parts=max(map(len, polygons), default=0),
        num_edges=max((sum(map(len, parts)) // 2 for parts in polygons), default=0),
        objects=pack(Objects(image.height, image.width, False, boxes, labels, polygons)),
    )


def _annotations(file: CocoFile, evaluated: list[dict[str, Any]]) -> dict[str, Any]:
    """What pycocotools evaluates on: the same objects with all that it reads, and nothing else."""
    # COCOeval takes an object whose id is 0 for one that was not found.
    if not all(type(annotation["id"]) is int and annotation["id"] > 0 for annotation in evaluated):
        for number, annotation in enumerate(evaluated, start=1):
            annotation["id"] = number
    images = [
        {"id": image.id, "file_name": image.file_name, "height": image.height, "width": image.width}
        for _, image in sorted(file.images.items())
    ]
    return {
        "info": {"description": f"Annotations of {file.path.name}, as prepared by gw_jax."},
        "images": images,
        "categories": [category._asdict() for category in file.categories],
        "annotations": evaluated,
    }
