"""``python -m gw_jax.data.prepare folder NAME --train=DIR --eval=DIR``: a TFDS set of a folder of images."""

import argparse
import functools
import pathlib
import sys
from typing import Any

from gw_jax.data.datasets import OWN_BUILDERS, check_data_dir, load_builder, one_line_errors
from gw_jax.data.prepare.array_record import DISK_SHARE, make_builder, write_split
from gw_jax.data.prepare.build import check_free_space, preparation_lock, prepare
from gw_jax.data.prepare.folder import ImageFolder, check_classes, check_images, list_images, merge_shapes
from gw_jax.data.prepare.names import check_new_name
from gw_jax.errors import DataError

# 1.0.0 had another order of examples.
VERSION = "1.1.0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command to ``parser``."""
    parser.add_argument("name", help="the name that the set gets: small letters, digits and _")
    parser.add_argument("--train", required=True, metavar="DIR", help="training images: DIR/CLASS/*.jpg, .png, ...")
    parser.add_argument("--eval", required=True, metavar="DIR", help="images to evaluate on, of the same classes")


def prepare_folder(name: str, data_dir: str | None, train: str, evaluation: str) -> Any:
    """Prepares the TFDS set ``name`` with the splits ``train`` and ``validation``; returns its builder.

    Labels are the positions of the classes in alphabetical order. The encoded files are copied as they are. A set that is
    prepared already is kept if it was made from files of the same names and contents.

    Raises:
        DataError: a name that TFDS has, folders that cannot be used, or another set of that name.
    """
    check_data_dir(data_dir)
    check_new_name(name, OWN_BUILDERS)
    folders = {
        "train": list_images(pathlib.Path(train).expanduser(), "--train"),
        "validation": list_images(pathlib.Path(evaluation).expanduser(), "--eval"),
    }
    check_classes(folders["train"], folders["validation"])
    # Not the folders' paths: they may have moved since.
    source = f"Images of a folder, {'-'.join(folder.fingerprint() for folder in folders.values())}."
    with one_line_errors(name, data_dir):
        builder = _builder(name, data_dir, folders, source, shape=(None, None, 3))
        with preparation_lock(builder, wait=False):
            if not _is_prepared(builder, data_dir, source):
                shape = merge_shapes(map(check_images, folders.values()))
                size = sum(folder.num_bytes for folder in folders.values())
                check_free_space(str(builder.data_path), DISK_SHARE * size, copies=False)
                prepare(_builder(name, data_dir, folders, source, shape))
        return load_builder(name, data_dir)


def _is_prepared(builder: Any, data_dir: str | None, source: str) -> bool:
    """Whether the set is there, made from the same files.

    Raises:
        DataError: it was made from others.
    """
    if not builder.is_prepared():
        return False
    # The builder itself has the new description; that on the disk is read anew.
    if load_builder(builder.name, data_dir).info.description.strip() != source:
        raise DataError(
            f"{builder.data_path} holds a set that was prepared from other files. Give another NAME, or remove that "
            "directory and run the command again."
        )
    print(f"{builder.info.full_name} is prepared already.", file=sys.stderr)
    return True


def _builder(
    name: str,
    data_dir: str | None,
    folders: dict[str, ImageFolder],
    source: str,
    shape: tuple[int | None, int | None, int],
) -> Any:
    import tensorflow_datasets as tfds

    classes = list(folders["train"].files)

    def describe(builder: Any) -> Any:
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(names=classes),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=builder,
            description=source,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def write(builder: Any) -> list[Any]:
        return [
            write_split(builder, split, _entries(folder), folder.num_bytes, functools.partial(_example, folder))
            for split, folder in folders.items()
        ]

    return make_builder(name, VERSION, data_dir, describe, write)


def _entries(folder: ImageFolder) -> list[tuple[str, str]]:
    """The class and the path of every image."""
    return [(name, path) for name, paths in folder.files.items() for path in paths]


def _example(folder: ImageFolder, entry: tuple[str, str]) -> dict[str, Any]:
    name, path = entry
    return {"image": (folder.root / path).read_bytes(), "label": name, "file_name": path}
