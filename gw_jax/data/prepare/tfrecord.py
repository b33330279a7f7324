"""A set that TFDS prepared as TFRecord, copied record by record into the ArrayRecord files that are read at random."""

import json
import os
import shutil
import sys
from typing import Any

from gw_jax.errors import DataError, one_line


def convert_tfrecord(builder: Any, source: str) -> None:
    """Converts ``source``, the directory of a version in TFRecord, to what ``builder`` reads, on a local disk.

    A shard appears whole or not at all and is not converted twice; the description, without which the directory is no data
    set, is written last.

    Raises:
        DataError: ``source`` is not such a directory, is damaged, or holds another set or version; TensorFlow is not
            installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise DataError(
            f"Reading TFRecord needs the package {error.name!r}. Install the extra: pip install 'gw_jax[prepare]'."
        ) from error
    import tensorflow_datasets as tfds
    from etils import epath

    try:
        found = tfds.builder_from_directory(source)
    except Exception as error:  # TFDS raises what it meets in a directory that is not one of its own.
        raise DataError(
            f"{source} is not the directory of a prepared version, such as .../imagenet2012/5.1.0 with its "
            f"dataset_info.json ({one_line(f'{type(error).__name__}: {error}')})."
        ) from error
    if found.info.full_name != builder.info.full_name:
        raise DataError(
            f"{source} holds {found.info.full_name}; {builder.info.full_name} was requested. Name that set instead."
        )
    target = epath.Path(builder.data_path)
    if "://" in str(target):
        raise DataError(f"{target} is a bucket. Convert to a local --data_dir and copy the directory there.")
    target.mkdir(parents=True, exist_ok=True)
    for split in found.info.splits.values():
        shards = list(zip(split.filepaths, split.shard_lengths, strict=True))
        for number, (path, length) in enumerate(shards, start=1):
            out = target / epath.Path(path).name.replace(".tfrecord-", ".array_record-")
            if not out.exists():
                print(f"Converting {split.name}, shard {number} of {len(shards)}", file=sys.stderr)
                _convert_shard(tf.data.TFRecordDataset(os.fspath(path)), length, path, out)
    description = json.loads((epath.Path(source) / "dataset_info.json").read_text())
    description["fileFormat"] = "array_record"
    for path in epath.Path(source).iterdir():
        if ".tfrecord-" not in path.name and path.is_file() and path.name != "dataset_info.json":
            shutil.copyfile(path, target / path.name)
    unfinished = target / ".dataset_info.json"
    unfinished.write_text(json.dumps(description, indent=2))
    unfinished.replace(target / "dataset_info.json")


def _convert_shard(records: Any, expected: int, source: Any, out: Any) -> None:
    from array_record.python import array_record_module

    unfinished = out.parent / f".{out.name}"
    # One record per group, as TFDS writes it: each can be read without its neighbours.
    writer, count = array_record_module.ArrayRecordWriter(os.fspath(unfinished), "group_size:1"), 0
    try:
        try:
            for record in records.as_numpy_iterator():
                writer.write(record)
                count += 1
        finally:
            writer.close()
    except Exception as error:  # TensorFlow's errors for damaged files, and a full disk, which only close() reports.
        raise DataError(
            f"{source} cannot be converted after {count} records ({one_line(f'{type(error).__name__}: {error}')})."
        ) from error
    if count != expected:
        unfinished.unlink()
        raise DataError(f"{source} holds {count} records; {expected} belong there. Copy it again from its source.")
    unfinished.replace(out)
