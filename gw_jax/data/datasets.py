"""Opening and preparing TFDS data sets in the ArrayRecord format, which is read at random and without TensorFlow."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from gw_jax.data.specs import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, SPECS, DatasetSpec
from gw_jax.errors import DataError, raise_missing_package

# The sets that this package defines itself; each module registers one builder.
OWN_BUILDERS = {"mnist5k": "gw_jax.data.mnist5k"}


class Dataset(NamedTuple):
    """A prepared data set: its description and random access to the records of both splits."""

    spec: DatasetSpec
    train: Sequence[Any]
    evaluation: Sequence[Any]


def open_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Opens the TFDS image-classification set ``name``; one of this package's own is prepared on first use.

    Args:
        name: a TFDS name, with a configuration or version if wanted ("imagenette/full-size-v2").
        data_dir: where prepared sets are; None for the TFDS default (``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``).

    Raises:
        DataError: no such set, not prepared, prepared in a format without random access, or not a set of labelled images.
    """
    builder = load_builder(name, data_dir)
    if not builder.is_prepared():
        if name not in OWN_BUILDERS:
            raise DataError(
                f"The data set {name!r} is not prepared in {builder.data_path}. "
                f"Prepare it once with: {_prepare_command(name, data_dir)}"
            )
        prepare(builder)
    spec = SPECS.get(name) or describe(builder, name)
    train, evaluation = (_data_source(builder, name, data_dir, split) for split in (spec.train_split, spec.eval_split))
    for split, source, expected in (
        (spec.train_split, train, spec.num_train),
        (spec.eval_split, evaluation, spec.num_eval),
    ):
        if len(source) != expected:
            raise DataError(
                f"The split {split!r} of {name!r} in {builder.data_path} has {len(source)} examples; {expected} belong "
                f"there. Remove that directory and prepare the set again: {_prepare_command(name, data_dir)}"
            )
    return Dataset(spec, train, evaluation)


def load_builder(name: str, data_dir: str | None = None) -> Any:
    """The TFDS builder of ``name``, reading and writing ArrayRecord.

    Raises:
        DataError: TFDS knows no such set.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise_missing_package(error, "Reading a data set")
    tfds.display_progress_bar(False)
    if name in OWN_BUILDERS:
        importlib.import_module(OWN_BUILDERS[name])
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        known = sorted({*tfds.list_builders(with_community_datasets=False), *OWN_BUILDERS})
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "Names are those of TFDS, such as mnist or cifar10."
        raise DataError(f"No data set is called {name!r} (data_dir: {data_dir or 'the default'}). {hint}") from None
    except ValueError as error:
        # Raised where the directory holds the set in another file format.
        raise DataError(
            f"The data set {name!r} cannot be opened as ArrayRecord: {error}. Give another data_dir and prepare it there: "
            f"{_prepare_command(name, 'DIR')}"
        ) from error


def prepare(builder: Any) -> None:
    """Downloads (where needed) and prepares the set of ``builder``; an interrupted attempt leaves nothing that counts.

    Raises:
        DataError: the set's own builder failed, for instance because it needs TensorFlow.
    """
    print(f"Preparing the data set {builder.info.full_name} in {builder.data_path} ...", file=sys.stderr)
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise DataError(
            f"Preparing {builder.info.full_name} needs the package {error.name!r}. Install it (for TensorFlow: "
            "pip install tensorflow; only preparing needs it, training does not) and run the command again."
        ) from error
    except Exception as error:  # Builders fail in their own ways: no network, a missing file, a full disk.
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"Preparing {builder.info.full_name} in {builder.data_path} failed. {reason}") from error


def describe(builder: Any, name: str) -> DatasetSpec:
    """Reads the description of a prepared set that :data:`SPECS` does not list.

    Raises:
        DataError: it has no ``image`` and ``label``, or no split to train on or to evaluate on.
    """
    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if image is None or label is None or not hasattr(label, "num_classes") or len(image.shape) != 3:
        raise DataError(
            f"The data set {name!r} is not one of labelled images: its features are {sorted(features)}; an image-"
            "classification set has 'image' [height, width, channels] and a class 'label'."
        )
    splits = builder.info.splits
    evaluation = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or evaluation is None:
        raise DataError(f"The data set {name!r} has the splits {sorted(splits)}; needed are train, and test or validation.")
    colour = image.shape[-1] == 3
    return DatasetSpec(
        name=name,
        num_classes=label.num_classes,
        image_shape=tuple(image.shape),
        train_split="train",
        eval_split=evaluation,
        num_train=splits["train"].num_examples,
        num_eval=splits[evaluation].num_examples,
        mean=IMAGENET_MEAN if colour else GREY_MEAN * image.shape[-1],
        std=IMAGENET_STD if colour else GREY_STD * image.shape[-1],
    )


def _data_source(builder: Any, name: str, data_dir: str | None, split: str) -> Sequence[Any]:
    try:
        return builder.as_data_source(split=split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The split {split!r} of {name!r} in {builder.data_path} cannot be read: {error}. Remove that directory and "
            f"prepare the set again: {_prepare_command(name, data_dir)}"
        ) from error


def _prepare_command(name: str, data_dir: str | None) -> str:
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"python -m gw_jax.data.prepare {name}{where}"
