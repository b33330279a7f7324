"""Opening TFDS data sets in the ArrayRecord format, which is read at random and without TensorFlow."""

import contextlib
import dataclasses
import importlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gw_jax.data.digest import digest
from gw_jax.data.prepare.build import preparation_lock, prepare
from gw_jax.data.specs import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, SPECS, DatasetSpec
from gw_jax.errors import DataError, UserError, one_line, raise_missing_package, shown, unknown_name

# The sets that this package defines itself; each module registers one builder.
OWN_BUILDERS = {"mnist5k": "gw_jax.data.prepare.mnist5k"}
# Mean and standard deviation of each channel, by the number of channels; the fourth is the opacity.
NORMALISATION = {
    1: (GREY_MEAN, GREY_STD),
    3: (IMAGENET_MEAN, IMAGENET_STD),
    4: (IMAGENET_MEAN + GREY_MEAN, IMAGENET_STD + GREY_STD),
}
# NAME, NAME/CONFIG, NAME:VERSION, NAMESPACE:NAME/CONFIG:VERSION, NAME/OPTION=VALUE,OPTION=VALUE.
_NAME = re.compile(r"(\w+:)?[A-Za-z_]\w*(/[\w.,=+-]+)*(:[\w.*]+)?(/[\w.,=+-]+)?")


class Records(Sequence[Any]):
    """Random access to one split: dicts with ``image``, still encoded, and ``label`` (ReaL: its two kinds of labels).

    Attributes:
        num_classes: labels are below it; None where that is not known.
        digest: of the prepared set's description; see :func:`digest`.
    """

    def __init__(
        self, source: Sequence[Any], name: str, split: str, *, num_classes: int | None = None, digest: str | None = None
    ):
        self._source, self._name, self._split = source, name, split
        self.num_classes, self.digest = num_classes, digest

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        # Raises IndexError past the end, which is what ends a loop; array_record raises ValueError.
        return self._source[range(len(self))[index]]

    def where(self, index: int) -> str:
        """The name of an example in messages: "example 17 of imagenet2012/train (n01440764_10026.JPEG)"."""
        try:
            file_name = self[index]["file_name"]
            file_name = one_line(file_name.decode() if isinstance(file_name, bytes) else str(file_name), 100)
        except Exception:  # The example may be broken in any way, and not every set has the field.
            file_name = ""
        return f"example {index} of {self._name}/{self._split}" + (f" ({file_name})" if file_name else "")


class Dataset(NamedTuple):
    """A prepared data set: its description and random access to the records of both splits.

    Example:
        >>> from gw_jax.data import open_dataset
        >>> spec, train, evaluation = open_dataset("mnist5k")
        >>> len(train), len(evaluation)
        (4000, 1000)
    """

    spec: DatasetSpec
    train: Sequence[Any]
    evaluation: Sequence[Any]


def open_dataset(
    name: str,
    data_dir: str | None = None,
    *,
    evaluation: str | None = None,
    allow_partial: bool = False,
    training: bool = True,
) -> Dataset:
    """Opens the TFDS image-classification set ``name``; one of this package's own is prepared on first use.

    Args:
        name: a TFDS name, with a configuration or version where needed ("imagenette/full-size-v2").
        data_dir: where prepared sets are, a path or a bucket (gs://...); None for the TFDS default (``$TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``).
        evaluation: another set to evaluate on, such as "imagenet_v2/matched-frequency"; None for the set's own split.
        allow_partial: accepts a known set although examples are missing, such as a few classes for a trial.
        training: False opens the examples to evaluate on only: ``train`` is empty and need not be prepared, nor need the
            set ``name`` be where ``evaluation`` is another one and :data:`gw_jax.data.specs.SPECS` lists ``name``.

    Raises:
        DataError: no such set, not prepared, prepared in a format without random access, not of the size it should have,
            or not a set of labelled images.

    Example:
        >>> from gw_jax.data import open_dataset
        >>> digits = open_dataset("mnist5k")  # prepared on first use
        >>> digits.spec.num_classes, digits.train[0]["image"][1:4]
        (10, b'PNG')
    """
    if not training and evaluation is not None and name in SPECS:
        spec, builder = SPECS[name], None
    else:
        spec, builder = _open(name, data_dir)
    train: Sequence[Any] = ()
    if training:
        if spec.train_split is None:
            raise DataError(
                f"The data set {name!r} has no split to train on (needed are train, and validation or test); it is one to "
                "evaluate on: config.data.eval_name."
            )
        train = _records(builder, name, data_dir, spec.train_split, spec, None if allow_partial else spec.num_train)
    if evaluation is not None:
        other, builder = _open(evaluation, data_dir)
        if other.num_classes != spec.num_classes:
            raise DataError(
                f"{evaluation!r} has {other.num_classes} classes and {name!r} {spec.num_classes}; evaluate on a set with "
                "the same classes."
            )
        if other.image_shape[-1] != spec.image_shape[-1]:
            raise DataError(
                f"{evaluation!r} has images of {other.image_shape[-1]} channels and {name!r} of {spec.image_shape[-1]}; "
                "evaluate on a set with the same channels."
            )
        spec = dataclasses.replace(spec, eval_split=other.eval_split, num_eval=other.num_eval)
    held_out = _records(
        builder, evaluation or name, data_dir, spec.eval_split, spec, None if allow_partial else spec.num_eval
    )
    num_train = len(train) if training else spec.num_train
    return Dataset(dataclasses.replace(spec, num_train=num_train, num_eval=len(held_out)), train, held_out)


def _open(name: str, data_dir: str | None) -> tuple[DatasetSpec, Any]:
    builder = load_builder(name, data_dir)
    with one_line_errors(name, data_dir):
        if not builder.is_prepared():
            if name not in OWN_BUILDERS:
                raise DataError(
                    f"The data set {name!r} is not prepared in {builder.data_path}. "
                    f"Prepare it once with: {prepare_command(name, data_dir)}"
                )
            with preparation_lock(builder, wait=True):
                # Another process may have prepared it meanwhile, which a builder sees when it is made.
                builder = load_builder(name, data_dir)
                if not builder.is_prepared():
                    prepare(builder)
        return SPECS.get(builder.name) or describe(builder, name), builder


def load_builder(name: str, data_dir: str | None = None) -> Any:
    """The TFDS builder of ``name``, reading and writing ArrayRecord.

    Raises:
        DataError: TFDS has no such set, configuration or version, or the directory cannot be used.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise_missing_package(error, "Reading a data set")
    check_data_dir(data_dir)
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{shown(name)} is no name of a data set. Names are those of TFDS, such as mnist5k, cifar10 or "
            "imagenet_v2/matched-frequency; a directory is given as data_dir."
        )
    tfds.display_progress_bar(False)
    if name in OWN_BUILDERS:
        importlib.import_module(OWN_BUILDERS[name])
    with one_line_errors(name, data_dir):
        try:
            return tfds.builder(name, data_dir=data_dir, file_format="array_record")
        except tfds.core.DatasetNotFoundError:
            known = sorted({*tfds.list_builders(with_community_datasets=False), *OWN_BUILDERS})
            where = data_dir or "the default data directory"
            choices = f"a name of TFDS, such as mnist or cifar10, or of a set prepared in {where}"
            raise DataError(unknown_name("The data set", name, known, choices=choices)) from None
        except ValueError as error:
            base, _, configuration = name.partition("/")
            if "BuilderConfig" in str(error):
                known = list(tfds.builder_cls(base.partition(":")[0]).builder_configs)
                none = None if known else "none: it has no configurations"
                raise DataError(unknown_name(f"The configuration of {base}", configuration, known, choices=none)) from None
            # Raised where the directory holds the set in another file format.
            raise DataError(
                f"The data set {name!r} cannot be opened as ArrayRecord: {one_line(str(error))}. Give another data_dir and "
                f"prepare it there: {prepare_command(name, 'DIR')}"
            ) from error


def check_data_dir(data_dir: str | None) -> None:
    """Raises DataError if ``data_dir`` is empty, which would be the current directory."""
    if data_dir is not None and not data_dir.strip():
        raise DataError(
            "The data directory is an empty string; give a path, or None for the default (~/tensorflow_datasets)."
        )


@contextlib.contextmanager
def one_line_errors(name: str, data_dir: str | None) -> Iterator[None]:
    """Turns whatever TFDS and file systems raise about the data set ``name`` into a DataError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # No package for a bucket, no network, no permission, damaged descriptions, ...
        raise DataError(
            f"The data set {name!r} cannot be used in {data_dir or 'the default data directory'} "
            f"({type(error).__name__}: {one_line(str(error))})."
        ) from error


def describe(builder: Any, name: str) -> DatasetSpec:
    """Reads the description of a prepared set that :data:`SPECS` does not list.

    Raises:
        DataError: it has no ``image`` and ``label``, its images have other channels than 1, 3 or 4, or pixels without a
            known range, or it has no split to train on or to evaluate on.
    """
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    shape: Any = getattr(image, "shape", None) or ()
    if image is None or label is None or not getattr(label, "num_classes", None) or len(shape) != 3:
        raise DataError(
            f"The data set {name!r} does not consist of labelled images: its features are {sorted(features)}; an image-"
            "classification set has 'image' [height, width, channels] and a class 'label'."
        )
    height, width, channels = shape
    if channels is None and isinstance(image, tfds.features.Image):
        channels = 3  # Encoded images are converted, grey ones too.
    if channels not in NORMALISATION:
        raise DataError(f"The images of the data set {name!r} have {channels} channels; 1, 3 or 4 can be trained on.")
    if np.dtype(image.np_dtype) not in (np.uint8, np.uint16, np.bool_):
        raise DataError(
            f"The images of the data set {name!r} are of type {np.dtype(image.np_dtype)}, whose range is not known; uint8 "
            "(0 to 255) and uint16 (0 to 65535) can be trained on. Prepare the set with images of one of these types."
        )
    splits = builder.info.splits
    evaluation = next((split for split in ("validation", "test") if split in splits), None)
    if evaluation is None:
        raise DataError(f"The data set {name!r} has the splits {sorted(splits)}; needed are train, and validation or test.")
    mean, std = NORMALISATION[channels]
    return DatasetSpec(
        name=name,
        num_classes=label.num_classes,
        image_shape=(height, width, channels),
        train_split="train" if "train" in splits else None,
        eval_split=evaluation,
        num_train=splits["train"].num_examples if "train" in splits else 0,
        num_eval=splits[evaluation].num_examples,
        mean=mean,
        std=std,
    )


def _records(builder: Any, name: str, data_dir: str | None, split: str, spec: DatasetSpec, expected: int | None) -> Records:
    import tensorflow_datasets as tfds

    again = f"Remove that directory and prepare the set again: {prepare_command(name, data_dir)}"
    if split not in builder.info.splits:
        raise DataError(
            f"The data set {name!r} in {builder.data_path} has no split {split!r}, only {sorted(builder.info.splits)}. "
            f"{again}"
        )
    try:
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:  # TFDS and array_record raise what they meet in missing or damaged files.
        reason = one_line(f"{type(error).__name__}: {error}")
        raise DataError(
            f"The split {split!r} of {name!r} in {builder.data_path} cannot be read: {reason}. {again}"
        ) from error
    if expected is not None and len(source) != expected:
        raise DataError(
            f"The split {split!r} of {name!r} in {builder.data_path} has {len(source)} examples; {expected} belong there. "
            f"{again} (or set config.data.allow_partial=True to use a part of it)"
        )
    return Records(source, name, split, num_classes=spec.num_classes, digest=digest(builder))


def prepare_command(name: str, data_dir: str | None) -> str:
    """The command that prepares ``name`` in ``data_dir``."""
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"python -m gw_jax.data.prepare {name}{where}"
