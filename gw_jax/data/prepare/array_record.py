"""TFDS sets written as ArrayRecord in a given order, without TensorFlow.

TFDS's own writer needs TensorFlow for a set above 1 GB, and an ordered one whole in memory.
"""

import contextlib
import io
import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

SHARD_BYTES = 1 << 28
# Disk space of a set, as a share of its files: the records, and what stands around them.
DISK_SHARE = 1.05

Entry = TypeVar("Entry")


def make_builder(
    name: str,
    version: str,
    data_dir: str | None,
    describe: Callable[[Any], Any],
    write: Callable[[Any], Sequence[Any]],
) -> Any:
    """The TFDS builder of a set that its user names, which TFDS does not list.

    Args:
        name: of the set.
        version: of its format.
        data_dir: where prepared sets are.
        describe: makes the ``DatasetInfo`` for the builder.
        write: writes everything into the builder's directory, which is a temporary one then, and returns what
            :func:`write_split` returned for each split.
    """
    import tensorflow_datasets as tfds

    def prepare(self: Any, dl_manager: Any, download_config: Any) -> None:
        self.info.set_splits(tfds.core.SplitDict(write(self)))

    def download_and_prepare(self: Any, **options: Any) -> None:
        # TFDS prints that it downloads a set of unknown size. Nothing is downloaded.
        with contextlib.redirect_stdout(io.StringIO()):
            tfds.core.GeneratorBasedBuilder.download_and_prepare(self, **options)

    members = {
        "name": name,
        "VERSION": tfds.core.Version(version),
        "_info": describe,
        "download_and_prepare": download_and_prepare,
        "_download_and_prepare": prepare,
        "_split_generators": None,
        "_generate_examples": None,
    }
    with tfds.core.registered.skip_registration():
        kind = type("OwnSet", (tfds.core.GeneratorBasedBuilder,), members)
    tfds.display_progress_bar(False)
    return kind(data_dir=data_dir, file_format="array_record")


def write_split(
    builder: Any, split: str, entries: Sequence[Entry], num_bytes: int, read: Callable[[Entry], Mapping[str, Any]]
) -> Any:
    """Writes the shards of one split; returns its TFDS description.

    Args:
        builder: of the set; to be called while it prepares, when its directory is a temporary one.
        split: name of the split.
        entries: what its examples are made of, in their order.
        num_bytes: about the size of all examples, which decides the number of shards.
        read: makes the example of an entry, as the features of the set take it.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    num_shards = min(max(math.ceil(num_bytes / SHARD_BYTES), 1), max(len(entries), 1))
    template = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path, dataset_name=builder.name, split=split, filetype_suffix="array_record"
    )
    bounds = [len(entries) * number // num_shards for number in range(num_shards + 1)]
    features = builder.info.features
    total = 0
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        if num_shards > 1:
            print(f"Writing {split}, shard {number + 1} of {num_shards}", file=sys.stderr, flush=True)
        path = template.sharded_filepath(shard_index=number, num_shards=num_shards)
        # One record per group, as TFDS writes it: each can be read without its neighbours.
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
        try:
            for entry in entries[start:end]:
                record = features.serialize_example(features.encode_example(read(entry)))
                total += len(record)
                writer.write(record)
        finally:
            writer.close()
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=total, filename_template=template)
