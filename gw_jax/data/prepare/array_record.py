"""Splits of a TFDS set written as ArrayRecord in a given order, without TensorFlow.

TFDS's own writer needs TensorFlow for a set above 1 GB, and an ordered one whole in memory.
"""

import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

SHARD_BYTES = 1 << 28

Entry = TypeVar("Entry")


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
