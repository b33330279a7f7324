"""Prepared sets of images with objects, opened by name and read at random, without TensorFlow."""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gw_jax.data.datasets import check_data_dir, one_line_errors
from gw_jax.data.digest import digest
from gw_jax.data.prepare.names import NAME
from gw_jax.detection.data.coco_file import Category
from gw_jax.detection.data.packed import unpack
from gw_jax.errors import DataError, one_line, raise_missing_package, shown

# Names of the set's own files, beside the records.
METADATA = "scenes.json"
INDEX = "index_{split}.npz"
ANNOTATIONS = "annotations_validation.json"
VERSION = "1.0.0"
FORMAT = 1
# The sets that this package makes itself on first use: module and function, which gets the data directory.
OWN_SETS = {"digit_scenes": ("gw_jax.detection.data.digit_scenes", "prepare_digit_scenes")}


class Scene(NamedTuple):
    """An image, still encoded, and its objects, without crowds.

    Attributes:
        image: the file's bytes.
        image_id: its id in the annotations.
        file_name: relative to the folder of images.
        height: of the image as annotated, in pixels.
        width: the same.
        boxes: float64 ``[k, 4]``, x1 y1 x2 y2 with inclusive ends, inside the image and of positive width and height.
        labels: int32 ``[k]``: label ``i + 1`` is category ``i``.
        polygons: for each object the parts, float64 ``x y x y ...`` each. An object annotated without a mask has none.
        turn: whether the decoded pixels must be turned as the file's EXIF orientation says
            (``PIL.ImageOps.exif_transpose``), because the annotations are of the turned image. False otherwise: pixels are
            then used as they are stored, whatever EXIF says.
    """

    image: bytes
    image_id: int
    file_name: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    polygons: list[list[np.ndarray]]
    turn: bool = False


class SceneRecords(Sequence[Scene]):
    """Random access to the scenes of one split, in the order of their image ids.

    Attributes:
        sizes: int32 ``[n, 2]``, height and width of each image.
        image_ids: int64 ``[n]``.
        num_objects: int32 ``[n]``.
        num_edges: int32 ``[n]``, the largest number of edges of one of the image's objects.
        max_objects: the largest number of objects of an image.
        max_edges: the largest number of edges of an object.
        has_masks: whether every object has a polygon.
        digest: identifies the set's content, so that a resume notices another one.
    """

    def __init__(
        self,
        source: Sequence[Any],
        name: str,
        index: Mapping[str, np.ndarray],
        *,
        has_masks: bool,
        digest: str,
    ):
        self._source, self._name = source, name
        self.image_ids, self.sizes = index["image_ids"], index["sizes"]
        self.num_objects, self.num_edges = index["num_objects"], index["num_edges"]
        self.max_objects = int(self.num_objects.max(initial=0))
        self.max_edges = int(self.num_edges.max(initial=0))
        self.has_masks, self.digest = has_masks, digest

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        # Raises IndexError past the end, which is what ends a loop; array_record raises ValueError.
        record = self._source[range(len(self))[index]]
        objects = unpack(record["objects"])
        return Scene(
            image=record["image"],
            image_id=int(record["image_id"]),
            file_name=record["file_name"].decode(errors="replace"),
            height=objects.height,
            width=objects.width,
            boxes=objects.boxes,
            labels=objects.labels,
            polygons=[list(polygon) for polygon in objects.polygons],
            turn=objects.turn,
        )

    def where(self, index: int) -> str:
        """The name of a scene in messages: "image 139 of coco2017/validation (000000000139.jpg)"."""
        try:
            file_name = one_line(self._source[index]["file_name"].decode(errors="replace"), 100)
        except Exception:  # The record may be damaged in any way.
            file_name = ""
        return f"image {self.image_ids[index]} of {self._name}" + (f" ({file_name})" if file_name else "")


class Scenes(NamedTuple):
    """A prepared set.

    Attributes:
        name: under which it was opened.
        categories: label ``i + 1`` is ``categories[i]``; ids are ascending.
        train: scenes to train on; empty with ``training=False``.
        evaluation: scenes to evaluate on, each image once, those without objects too.
        annotations: path of the evaluation's annotations in COCO's format, crowds included.
    """

    name: str
    categories: tuple[Category, ...]
    train: Any
    evaluation: SceneRecords
    annotations: str


def open_scenes(name: str, data_dir: str | None = None, *, training: bool = True) -> Scenes:
    """Opens the set ``name`` that ``python -m gw_jax.detection.prepare`` made; "digit_scenes" is prepared on first use.

    Args:
        name: of the set.
        data_dir: where prepared sets are; None for ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
        training: False opens the scenes to evaluate on only.

    Raises:
        DataError: there is no such set, or it is damaged.
    """
    check_data_dir(data_dir)
    if not NAME.fullmatch(name):
        raise DataError(
            f"{shown(name)} is no name of a prepared set: small letters, digits and _, such as digit_scenes or coco2017. A "
            "directory is given as data_dir."
        )
    with one_line_errors(name, data_dir):
        directory = set_directory(name, data_dir)
        if not (directory / METADATA).exists() and name in OWN_SETS:
            _own_set(name)(data_dir)
        if not (directory / METADATA).exists():
            raise _not_prepared(name, directory)
        return _open(name, directory, training)


def set_directory(name: str, data_dir: str | None) -> Any:
    """The directory of the set ``name``, whether it is there or not, as a path of etils."""
    try:
        import tensorflow_datasets as tfds
        from etils import epath
    except ImportError as error:
        raise_missing_package(error, "Reading a data set")
    tfds.display_progress_bar(False)
    # Not imported by value: TFDS reads the environment once, and tests replace it.
    root = data_dir or tfds.core.constants.DATA_DIR
    return epath.Path(os.path.expanduser(root)) / name / VERSION


def _own_set(name: str) -> Callable[[str | None], Any]:
    module, function = OWN_SETS[name]
    return getattr(importlib.import_module(module), function)


def _open(name: str, directory: Any, training: bool) -> Scenes:
    import tensorflow_datasets as tfds

    metadata = json.loads((directory / METADATA).read_text())
    if metadata["format"] != FORMAT:
        raise DataError(
            f"{directory} was prepared by another version of gw_jax (format {metadata['format']}; {FORMAT} is read). "
            "Remove that directory and prepare the set again."
        )
    builder = tfds.builder_from_directory(os.fspath(directory))
    identity = hashlib.sha256(f"{digest(builder)} {metadata['source']}".encode()).hexdigest()[:16]

    def records(split: str) -> SceneRecords:
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        with (directory / INDEX.format(split=split)).open("rb") as file:
            index = dict(np.load(file, allow_pickle=False))
        if len(source) != len(index["image_ids"]):
            raise DataError(
                f"The split {split!r} in {directory} has {len(source)} images; {len(index['image_ids'])} belong there. "
                "Remove that directory and prepare the set again."
            )
        without_mask = metadata["splits"][split]["objects_without_mask"]
        return SceneRecords(source, f"{name}/{split}", index, has_masks=not without_mask, digest=identity)

    return Scenes(
        name=name,
        categories=tuple(Category(entry["id"], entry["name"]) for entry in metadata["categories"]),
        train=records("train") if training else (),
        evaluation=records("validation"),
        annotations=os.fspath(directory / ANNOTATIONS),
    )


def _not_prepared(name: str, directory: Any) -> DataError:
    root = directory.parent.parent
    found = sorted(path.parent.parent.name for path in root.glob(f"*/{VERSION}/{METADATA}"))
    there = f" Prepared there: {', '.join(found[:10])}." if found else ""
    return DataError(
        f"The set {name!r} is not prepared in {root}.{there} Prepare it once from annotations in COCO's format: python -m "
        f"gw_jax.detection.prepare {name} --train JSON IMAGES --eval JSON IMAGES"
    )
