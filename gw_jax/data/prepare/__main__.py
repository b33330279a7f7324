"""``python -m gw_jax.data.prepare NAME [--data_dir=DIR] [--manual_dir=DIR]``: prepare a TFDS image data set, once.

``python -m gw_jax.data.prepare folder NAME --train=DIR --eval=DIR [--data_dir=DIR]`` makes a set from folders of images.

After an interruption, repeat the command: a set appears whole or not at all. ``--from_tfrecord=DIR`` converts a
set that TFDS prepared as TFRecord, shard by shard, and resumes after the last whole shard.
"""

import argparse
import os
import sys
from typing import Any

from absl import logging

from gw_jax.data.datasets import describe, load_builder, one_line_errors, prepare_command
from gw_jax.data.prepare.archives import ARCHIVES, COPIES_WHILE_PREPARING, check_archives
from gw_jax.data.prepare.build import check_free_space, preparation_lock, prepare
from gw_jax.data.prepare.folder_set import add_arguments, prepare_folder
from gw_jax.data.prepare.tfrecord import convert_tfrecord
from gw_jax.data.specs import SPECS
from gw_jax.errors import DataError, UserError


def main(arguments: list[str] | None = None) -> None:
    """Prepares the set that the command line names, counts it and says what to do next."""
    arguments = sys.argv[1:] if arguments is None else arguments
    of_folder = arguments[:1] == ["folder"]
    if of_folder:
        parser = argparse.ArgumentParser(
            prog="python -m gw_jax.data.prepare folder",
            description="Prepare a set from two folders of images, with one sub-folder per class, in ArrayRecord files.",
        )
        add_arguments(parser)
    else:
        parser = argparse.ArgumentParser(
            prog="python -m gw_jax.data.prepare",
            description="Prepare a TFDS image data set in ArrayRecord files.",
            epilog="For images of your own: python -m gw_jax.data.prepare folder --help",
        )
        _add_arguments(parser)
    parser.add_argument(
        "--data_dir", help="where prepared sets go, a path or a bucket; default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
    )
    given = parser.parse_args(arguments[of_folder:])
    # TensorFlow and TFDS log much that needs no attention.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    data_dir = None if given.data_dir is None else os.path.expanduser(given.data_dir)
    try:
        if of_folder:
            builder, allow_partial = prepare_folder(given.name, data_dir, given.train, given.eval), False
        else:
            builder, allow_partial = _prepare_named(given, data_dir), given.allow_partial
        with one_line_errors(given.name, data_dir):
            counts = _counts(builder, allow_partial, prepare_command(given.name, data_dir))
    except UserError as error:
        sys.exit(f"error: {error}")
    _report(builder, given.name, data_dir, allow_partial, counts)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", help="TFDS name, such as imagenet2012, imagenette, imagenet_v2/matched-frequency or cifar10"
    )
    parser.add_argument(
        "--manual_dir", help="where the archives are that must be downloaded by hand (ImageNet's tar files)"
    )
    parser.add_argument("--from_tfrecord", metavar="DIR", help="the directory of a version that is prepared as TFRecord")
    parser.add_argument("--allow_partial", action="store_true", help="accept archives and splits that lack a part")


def _prepare_named(given: argparse.Namespace, data_dir: str | None) -> Any:
    """Prepares a set that TFDS has, unless it is there; returns its builder."""
    manual_dir, source = (
        None if path is None else os.path.expanduser(path) for path in (given.manual_dir, given.from_tfrecord)
    )
    with one_line_errors(given.name, data_dir):
        builder = load_builder(given.name, data_dir)
        if builder.is_prepared():
            print(f"{builder.info.full_name} is prepared already.", file=sys.stderr)
        elif source is not None:
            with preparation_lock(builder, wait=False):
                convert_tfrecord(builder, source)
            builder = load_builder(given.name, data_dir)
        else:
            _prepare_from_scratch(builder, manual_dir, given.allow_partial)
    return builder


def _report(builder: Any, name: str, data_dir: str | None, allow_partial: bool, counts: dict[str, int]) -> None:
    spec = SPECS.get(builder.name)
    use = "data.name" if spec is None or spec.train_split else "data.eval_name"
    options = "".join(
        [
            f" --config.{use}={name}",
            f" --config.data.data_dir={data_dir}" if data_dir else "",
            " --config.data.image_size=224" if spec is None and None in builder.info.features["image"].shape else "",
            " --config.data.allow_partial=True" if allow_partial else "",
        ]
    )
    config = " --config=configs/imagenet_resnet50_gw.py" if builder.name.startswith("imagenet") else ""
    print(
        f"{builder.info.full_name} is ready in {builder.data_path}: "
        + ", ".join(f"{split} {count:,}" for split, count in counts.items())
        + f" examples.\nTrain with: python train.py{config}{options}"
    )


def _prepare_from_scratch(builder: Any, manual_dir: str | None, allow_partial: bool) -> None:
    if builder.name in ARCHIVES:
        if manual_dir is None:
            names = " and ".join(archive.name for archive in ARCHIVES[builder.name])
            raise DataError(
                f"{builder.name} is made of {names}, which must be downloaded from image-net.org by hand (an account is "
                "needed). Give their directory: --manual_dir=DIR"
            )
        size = check_archives(builder.name, manual_dir, allow_partial=allow_partial)
        check_free_space(str(builder.data_path), COPIES_WHILE_PREPARING * size)
    with preparation_lock(builder, wait=False):
        if sys.stderr.isatty():
            import tensorflow_datasets as tfds

            tfds.display_progress_bar(True)
        prepare(builder, manual_dir)


def _counts(builder: Any, allow_partial: bool, command: str) -> dict[str, int]:
    """The examples of every split, counted in the files; splits whose size is known must have it."""
    spec = SPECS.get(builder.name)
    expected = {} if spec is None else {spec.train_split: spec.num_train, spec.eval_split: spec.num_eval}
    if spec is None:
        describe(builder, builder.name)
    counts = {split: len(builder.as_data_source(split=split)) for split in builder.info.splits}
    for split, count in expected.items():
        if split is not None and counts.get(split) != count and not allow_partial:
            raise DataError(
                f"The split {split!r} in {builder.data_path} has {counts.get(split, 0):,} examples; {count:,} belong "
                f"there. Remove that directory and prepare the set again: {command}"
            )
    return counts


if __name__ == "__main__":
    main()
