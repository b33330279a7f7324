"""From files in COCO's format to a prepared set: everything is checked before anything is written."""

import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gw_jax.data.datasets import check_data_dir, one_line_errors
from gw_jax.data.prepare.array_record import DISK_SHARE
from gw_jax.data.prepare.build import check_free_space, preparation_lock, prepare
from gw_jax.detection.data.coco import Split, check_categories, read_coco
from gw_jax.detection.data.coco_set import Content, coco_builder
from gw_jax.detection.data.image_files import ImageFile, check_files
from gw_jax.detection.data.packed import pack, unpack
from gw_jax.detection.data.scenes import FORMAT, METADATA, set_directory
from gw_jax.errors import DataError

Source = tuple[pathlib.Path, pathlib.Path]


def prepare_coco(
    name: str,
    data_dir: str | None,
    train: Sequence[Source],
    evaluation: Source,
    *,
    keep_empty: bool = False,
    wait: bool = False,
) -> None:
    """Prepares the set ``name`` with the splits ``train`` and ``validation``, unless it is there, made from the same files.

    Args:
        name: of the set.
        data_dir: where prepared sets go; None for ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
        train: pairs of a JSON file and the folder of its images.
        evaluation: such a pair.
        keep_empty: keeps images without objects in training.
        wait: waits for another process that prepares the set, instead of an error.

    Raises:
        DataError: files that cannot be used, a set of that name made from others, no space, or another process at work.
    """
    check_data_dir(data_dir)
    if "://" in os.fspath(set_directory(name, data_dir)):
        raise DataError(
            f"{data_dir} is a bucket. Prepare the set in a local --data_dir and copy its directory {name} there."
        )
    splits = {
        "train": read_coco(train, "--train", training=True, keep_empty=keep_empty),
        "validation": read_coco([evaluation], "--eval", training=False),
    }
    check_categories(splits["train"].categories, splits["validation"].categories, train[0][0], evaluation[0])
    files = {}
    for split, flag in (("train", "--train"), ("validation", "--eval")):
        print(f"Checking {len(splits[split].images):,} images of {flag} ...", file=sys.stderr)
        files[split] = check_files(splits[split].images, flag)
        splits[split].images = _with_files(splits[split], files[split])
    content = Content(
        categories=splits["train"].categories,
        splits={name: split.images for name, split in splits.items()},
        facts=_facts(splits, files),
        annotations=splits["validation"].annotations or {},
        source=f"Images with objects, {_fingerprint(splits, keep_empty)}.",
    )
    with one_line_errors(name, data_dir):
        builder = coco_builder(name, data_dir, content)
        with preparation_lock(builder, wait=wait):
            if not _is_prepared(name, data_dir, content.source):
                size = sum(file.num_bytes for found in files.values() for file in found)
                check_free_space(str(builder.data_path), DISK_SHARE * size, copies=False)
                prepare(builder)


def read_facts(name: str, data_dir: str | None) -> Mapping[str, Any]:
    """What the description of a prepared set says about its splits, by their names."""
    return json.loads((set_directory(name, data_dir) / METADATA).read_text())["splits"]


def _is_prepared(name: str, data_dir: str | None, source: str) -> bool:
    """Whether the set is there, made from the same files.

    Raises:
        DataError: it was made from others, or is no set of this kind.
    """
    directory = set_directory(name, data_dir)
    if not directory.exists():
        return False
    metadata = directory / METADATA
    if not metadata.exists() or json.loads(metadata.read_text())["source"] != source:
        raise DataError(
            f"{directory} holds a set that was prepared from other files or with other options. Give another NAME, or "
            "remove that directory and run the command again."
        )
    print(f"{name} is prepared already.", file=sys.stderr)
    return True


def _with_files(split: Split, files: Sequence[ImageFile]) -> list[Any]:
    images = []
    for image, file in zip(split.images, files, strict=True):
        objects = pack(unpack(image.objects)._replace(turn=True)) if file.turn else image.objects
        images.append(dataclasses.replace(image, digest=file.digest, objects=objects))
    return images


def _fingerprint(splits: Mapping[str, Split], keep_empty: bool) -> str:
    """Identifies the contents of all files, wherever they are."""
    digest = hashlib.sha256(f"{FORMAT} {keep_empty}".encode())
    for name, split in splits.items():
        digest.update(f"{name} {' '.join(split.digests)}".encode())
        for image in split.images:
            digest.update(image.digest)
    return digest.hexdigest()[:16]


def _facts(splits: Mapping[str, Split], files: Mapping[str, Sequence[ImageFile]]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, split in splits.items():
        facts[name] = {
            "images": len(split.images),
            "images_without_objects": sum(not image.num_objects for image in split.images),
            "objects": sum(image.num_objects for image in split.images),
            "objects_without_mask": split.objects_without_mask,
            "crowds": split.num_crowds,
            "dropped": dict(split.dropped),
            "dropped_images": dict(split.dropped_images),
            "max_objects": max(image.num_objects for image in split.images),
            "max_parts": max(image.num_parts for image in split.images),
            "max_edges": max(image.num_edges for image in split.images),
            "turned_images": sum(file.turn for file in files[name]),
            "ambiguous_images": sum(file.ambiguous for file in files[name]),
            "categories_without_objects": [
                category.name for label, category in enumerate(split.categories, start=1) if not split.objects_of[label]
            ],
        }
    trained = {image.digest for image in splits["train"].images}
    facts["validation"]["images_in_train"] = sum(image.digest in trained for image in splits["validation"].images)
    return facts
