"""A TFDS set in ArrayRecord files of annotated images, written in the order of their ids, without TensorFlow.

TFDS's own writer would need TensorFlow for a set above 1 GB, and an ordered one whole in memory.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gw_jax.detection.data.coco import AnnotatedImage
from gw_jax.detection.data.coco_file import Category
from gw_jax.detection.data.scenes import ANNOTATIONS, FORMAT, INDEX, METADATA, VERSION
from gw_jax.errors import DataError

SHARD_BYTES = 1 << 28


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


def make_builder(name: str, data_dir: str | None, content: Content) -> Any:
    """The TFDS builder that writes ``content`` as the set ``name``."""
    import tensorflow_datasets as tfds

    def info(self: Any) -> Any:
        features = {
            "image": tfds.features.Image(),
            "image_id": tfds.features.Scalar(np.int64),
            "file_name": tfds.features.Text(),
            "objects": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=content.source,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def write(self: Any, dl_manager: Any, download_config: Any) -> None:
        splits = [_write_split(self, split, entries) for split, entries in content.splits.items()]
        self.info.set_splits(tfds.core.SplitDict(splits))
        _write_files(pathlib.Path(os.fspath(self.data_path)), content)

    members = {
        "name": name,
        "VERSION": tfds.core.Version(VERSION),
        "_info": info,
        "_download_and_prepare": write,
        "_split_generators": None,
        "_generate_examples": None,
    }
    with tfds.core.registered.skip_registration():
        kind = type("CocoSet", (tfds.core.GeneratorBasedBuilder,), members)
    tfds.display_progress_bar(False)
    return kind(data_dir=data_dir, file_format="array_record")


def _write_split(builder: Any, split: str, entries: Sequence[AnnotatedImage]) -> Any:
    """Writes the shards of one split; returns its TFDS description."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    size = sum(entry.path.stat().st_size + len(entry.objects) for entry in entries)
    num_shards = min(max(math.ceil(size / SHARD_BYTES), 1), len(entries))
    template = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path, dataset_name=builder.name, split=split, filetype_suffix="array_record"
    )
    bounds = [len(entries) * number // num_shards for number in range(num_shards + 1)]
    total = 0
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        print(f"Writing {split}, shard {number + 1} of {num_shards}", file=sys.stderr)
        path = template.sharded_filepath(shard_index=number, num_shards=num_shards)
        # One record per group, as TFDS writes it: each can be read without its neighbours.
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
        try:
            for entry in entries[start:end]:
                record = builder.info.features.serialize_example(_example(entry))
                total += len(record)
                writer.write(record)
        finally:
            writer.close()
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=total, filename_template=template)


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
