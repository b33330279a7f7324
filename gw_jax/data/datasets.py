"""Opening and preparing TFDS data sets in the ArrayRecord format, which is read at random and without TensorFlow."""

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from gw_jax.data.specs import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, SPECS, DatasetSpec
from gw_jax.errors import DataError, raise_missing_package

# The sets that this package defines itself; each module registers one builder.
OWN_BUILDERS = {"mnist5k": "gw_jax.data.prepare.mnist5k"}


class Records(Sequence[Any]):
    """Random access to one split: dicts with ``image``, still encoded, and ``label`` (ReaL: its two kinds of label)."""

    def __init__(self, source: Sequence[Any], name: str, split: str):
        self._source, self._name, self._split = source, name, split

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        # Raises IndexError past the end, which is what ends a loop; array_record raises ValueError.
        return self._source[range(len(self))[index]]

    def where(self, index: int) -> str:
        """Names an example for people: "example 17 of imagenet2012/train (n01440764_10026.JPEG)"."""
        try:
            file_name = self[index]["file_name"]
        except Exception:  # What is asked about is broken in some way, and not every set has the field.
            file_name = None
        known = f" ({file_name.decode() if isinstance(file_name, bytes) else file_name})" if file_name else ""
        return f"example {index} of {self._name}/{self._split}{known}"


class Dataset(NamedTuple):
    """A prepared data set: its description and random access to the records of both splits."""

    spec: DatasetSpec
    train: Sequence[Any]
    evaluation: Sequence[Any]


def open_dataset(
    name: str, data_dir: str | None = None, *, evaluation: str | None = None, allow_partial: bool = False
) -> Dataset:
    """Opens the TFDS image-classification set ``name``; one of this package's own is prepared on first use.

    Args:
        name: a TFDS name, with a configuration or version if wanted ("imagenette/full-size-v2").
        data_dir: where prepared sets are, a path or a bucket (gs://...); None for the TFDS default (``$TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``).
        evaluation: another set to evaluate on, such as "imagenet_v2/matched-frequency"; None for the set's own split.
        allow_partial: takes a known set although examples are missing, such as a few classes for a trial.

    Raises:
        DataError: no such set, not prepared, prepared in a format without random access, not of the size it should have,
            or not a set of labelled images.
    """
    spec, builder = _open(name, data_dir)
    if spec.train_split is None:
        raise DataError(f"The data set {name!r} has no split to train on; it is one to evaluate on: config.data.eval_name.")
    train = _records(builder, name, data_dir, spec.train_split, None if allow_partial else spec.num_train)
    if evaluation is not None:
        other, builder = _open(evaluation, data_dir)
        if other.num_classes != spec.num_classes:
            raise DataError(
                f"{evaluation!r} has {other.num_classes} classes and {name!r} {spec.num_classes}; evaluate on a set with "
                "the "
                "same classes."
            )
        spec = dataclasses.replace(spec, eval_split=other.eval_split, num_eval=other.num_eval)
    held_out = _records(builder, evaluation or name, data_dir, spec.eval_split, None if allow_partial else spec.num_eval)
    return Dataset(dataclasses.replace(spec, num_train=len(train), num_eval=len(held_out)), train, held_out)


def _open(name: str, data_dir: str | None) -> tuple[DatasetSpec, Any]:
    builder = load_builder(name, data_dir)
    if not builder.is_prepared():
        if name not in OWN_BUILDERS:
            raise DataError(
                f"The data set {name!r} is not prepared in {builder.data_path}. "
                f"Prepare it once with: {prepare_command(name, data_dir)}"
            )
        prepare(builder)
    return SPECS.get(builder.name) or describe(builder, name), builder


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
            f"{prepare_command(name, 'DIR')}"
        ) from error


def prepare(builder: Any, manual_dir: str | None = None) -> None:
    """Downloads (where needed) and prepares the set of ``builder``; an interrupted attempt leaves nothing that counts.

    Args:
        builder: from :func:`load_builder`.
        manual_dir: where files are that must be downloaded by hand.

    Raises:
        DataError: the set's own builder failed, for instance because it needs TensorFlow.
    """
    print(f"Preparing the data set {builder.info.full_name} in {builder.data_path} ...", file=sys.stderr)
    try:
        if manual_dir is None:
            builder.download_and_prepare()
        else:
            import tensorflow_datasets as tfds

            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except ImportError as error:
        raise DataError(
            f"Preparing {builder.info.full_name} needs the package {error.name!r}. Install it (for TensorFlow the extra: "
            "pip install 'gw_jax[prepare]'; only preparing needs it, training does not) and run the command again."
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
    evaluation = next((split for split in ("validation", "test") if split in splits), None)
    if "train" not in splits or evaluation is None:
        raise DataError(f"The data set {name!r} has the splits {sorted(splits)}; needed are train, and validation or test.")
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


def _records(builder: Any, name: str, data_dir: str | None, split: str, expected: int | None) -> Records:
    import tensorflow_datasets as tfds

    again = f"Remove that directory and prepare the set again: {prepare_command(name, data_dir)}"
    if split not in builder.info.splits:
        raise DataError(
            f"The data set {name!r} in {builder.data_path} has no split {split!r}, only {sorted(builder.info.splits)}. "
            f"{again}"
        )
    try:
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except (OSError, ValueError) as error:
        raise DataError(
            f"The split {split!r} of {name!r} in {builder.data_path} cannot be read: {error}. {again}"
        ) from error
    if expected is not None and len(source) != expected:
        raise DataError(
            f"The split {split!r} of {name!r} in {builder.data_path} has {len(source)} examples; {expected} belong there. "
            f"{again} (or set config.data.allow_partial=True if a part of it is what you want)"
        )
    return Records(source, name, split)


def prepare_command(name: str, data_dir: str | None) -> str:
    """The command that prepares ``name`` in ``data_dir``."""
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"python -m gw_jax.data.prepare {name}{where}"
