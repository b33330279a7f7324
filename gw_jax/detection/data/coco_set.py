"""A TFDS set in ArrayRecord files of annotated images, written in the order of their ids, without TensorFlow."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gw_jax.data.prepare.array_record import make_builder, write_split
from gw_jax.detection.data.coco import AnnotatedImage
from gw_jax.detection.data.coco_file import Category
from gw_jax.detection.data.scenes import ANNOTATIONS, FORMAT, INDEX, METADATA, VERSION
from gw_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Content:
    """All of a set.

    Attributes:
        categories: in ascending order of their ids.
        splits: the entries of "train" and "validation".
        facts: what the set's description says about itself: by split, a dict with ``objects_without_mask`` and more.
        annotations: of the evaluation, in COCO's format.
        source: identifies the files that the set is made from.
    """

    categories: Sequence[Category]
    splits: Mapping[str, Sequence[AnnotatedImage]]
    facts: Mapping[str, Mapping[str, Any]]
    annotations: Mapping[str, Any]
    source: str


def coco_builder(name: str, data_dir: str | None, content: Content) -> Any:
    """The TFDS builder that writes ``content`` as the set ``name``."""
    import tensorflow_datasets as tfds

    def describe(builder: Any) -> Any:
        features = {
            "image": tfds.features.Image(),
            "image_id": tfds.features.Scalar(np.int64),
            "file_name": tfds.features.Text(),
            "objects": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=builder,
            description=content.source,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def write(builder: Any) -> list[Any]:
        _write_files(pathlib.Path(os.fspath(builder.data_path)), content)
        return [
            write_split(builder, split, entries, sum(map(_num_bytes, entries)), _example)
            for split, entries in content.splits.items()
        ]

    return make_builder(name, VERSION, data_dir, describe, write)


def _num_bytes(entry: AnnotatedImage) -> int:
    return entry.path.stat().st_size + len(entry.objects)


def _example(entry: AnnotatedImage) -> dict[str, Any]:
    image = entry.path.read_bytes()
    if hashlib.sha256(image).digest() != entry.digest:
        raise DataError(f"{entry.path} was changed while the set was prepared. Run the command again.")
    return {
        "image": image,
        "image_id": entry.image_id,
        "file_name": entry.file_name.encode(errors="surrogateescape"),
        "objects": entry.objects,
    }


def _write_files(directory: pathlib.Path, content: Content) -> None:
    """Writes what stands beside the records."""
    for split, entries in content.splits.items():
        index: dict[str, Any] = {
            "image_ids": np.array([entry.image_id for entry in entries], np.int64),
            "sizes": np.array([(entry.height, entry.width) for entry in entries], np.int32).reshape(-1, 2),
            "num_objects": np.array([entry.num_objects for entry in entries], np.int32),
            "num_edges": np.array([entry.num_edges for entry in entries], np.int32),
        }
        np.savez(directory / INDEX.format(split=split), **index)
    (directory / ANNOTATIONS).write_text(json.dumps(content.annotations))
    description = {
        "format": FORMAT,
        "source": content.source,
        "categories": [category._asdict() for category in content.categories],
        "splits": content.facts,
    }
    (directory / METADATA).write_text(json.dumps(description, indent=2))
