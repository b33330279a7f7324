"""Single examples by their position in the order: read, decoded, cropped and checked."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from gw_jax.data.broken import MAX_SUBSTITUTES, Batch, broken_record, fatal_errors, name_of, nothing_readable
from gw_jax.data.images import Transform, eval_image, train_image
from gw_jax.data.shards import ProcessShard
from gw_jax.errors import DataError, one_line

# The label of examples that have none, as in the test splits of many sets.
UNLABELLED = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainExamples:
    """Training examples by their position in the run.

    ``order`` gives the index in the data set for an index in the global order. The random crop depends on ``seed`` and on
    the latter only.
    """

    source: Sequence[Any]
    order: Any
    shard: ProcessShard
    transform: Transform
    channels: int
    num_classes: int | None
    seed: int

    def __call__(self, position: int) -> Batch:
        """The example, with ``broken`` saying whether it replaces one that cannot be read.

        Raises:
            DataError: it is not labelled with one of the classes, its type is not that of an image, or none can be read.
        """
        global_index = self.shard.global_index(position)
        index, broken = int(self.order[global_index]), broken_record()
        for candidate in _candidates(index, len(self.source)):
            rng = None
            if self.transform.crop:
                rng = np.random.Generator(np.random.Philox(key=[self.seed, global_index]))
            try:
                with fatal_errors(self.source, candidate):
                    example = self.source[candidate]
                    image = train_image(example["image"], self.channels, self.transform, rng)
            except DataError:
                raise
            except Exception as error:  # Readers and decoders raise whatever they hit in damaged bytes.
                broken = broken if broken["index"] >= 0 else broken_record(index, error)
                continue
            label = _label(example["label"], self.source, candidate, self.num_classes)
            if label == UNLABELLED:
                raise DataError(
                    f"{name_of(self.source, candidate)} has the label {UNLABELLED}, which means none, and cannot be "
                    "trained on. Train on a labelled split, or prepare the set without such examples."
                )
            return {"image": image, "label": np.asarray(label, np.int32), "broken": broken}
        raise nothing_readable(index, broken)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalExamples:
    """Evaluation examples by their position: the data set in its own order, padded to whole batches.

    Examples with ``real_label``, the set of right answers, get it as ``labels``, bool ``[num_classes]``.
    """

    source: Sequence[Any]
    shard: ProcessShard
    transform: Transform
    channels: int
    num_classes: int | None

    def __call__(self, position: int) -> Batch:
        """The example with ``mask``, whether it counts, and ``broken``, which it is if it cannot be read.

        Unlabelled examples (-1) do not count, nor those without a right answer, nor broken ones.

        Raises:
            DataError: its label is not one of the classes, its type is not that of an image, or none can be read.
        """
        index, broken = self.shard.global_index(position), broken_record()
        counts = index < len(self.source)
        # Padding repeats a real example, so that networks need no special case; the mask leaves it out.
        start = index if counts else 0
        first_error = broken
        for candidate in _candidates(start, len(self.source)):
            try:
                with fatal_errors(self.source, candidate):
                    example = self.source[candidate]
                    image = eval_image(example["image"], self.channels, self.transform)
            except DataError:
                raise
            except Exception as error:  # As above.
                first_error = first_error if first_error["index"] >= 0 else broken_record(start, error)
                broken = first_error if counts else broken
                counts = False
                continue
            fields, labelled = self._labels(example, candidate)
            return {"image": image, **fields, "mask": np.asarray(counts and labelled), "broken": broken}
        raise nothing_readable(start, first_error)

    def _labels(self, example: Any, index: int) -> tuple[Batch, bool]:
        """The fields that hold the right answers, and whether there are any."""
        if "real_label" not in example:
            label = _label(example["label"], self.source, index, self.num_classes)
            # Padded examples need a label that exists.
            return {"label": np.asarray(max(label, 0), np.int32)}, label != UNLABELLED
        right = np.zeros(self.num_classes or 0, bool)
        for answer in np.asarray(example["real_label"]).tolist():
            label = _label(answer, self.source, index, self.num_classes)
            if label == UNLABELLED:
                raise _label_error(self.source, index, label, self.num_classes)
            right[label] = True
        original = _label(example["original_label"], self.source, index, self.num_classes)
        return {"label": np.asarray(max(original, 0), np.int32), "labels": right}, bool(right.any())


def _candidates(index: int, length: int) -> Any:
    """``index`` and the examples after it that may replace it, around the end of the set."""
    return ((index + offset) % length for offset in range(min(length, MAX_SUBSTITUTES)))


def _label(value: Any, source: Sequence[Any], index: int, num_classes: int | None) -> int:
    """The label as an integer from -1 (unlabelled) to the last class, all of int32 where their number is not known."""
    try:
        label = operator.index(value)
    except TypeError:
        raise _label_error(source, index, value, num_classes) from None
    if not UNLABELLED <= label < (num_classes or 1 << 31):
        raise _label_error(source, index, label, num_classes)
    return label


def _label_error(source: Sequence[Any], index: int, label: Any, num_classes: int | None) -> DataError:
    last = "" if num_classes is None else f" to {num_classes - 1}"
    return DataError(
        f"{name_of(source, index)} has the label {one_line(repr(label), 60)}; its set has integers from 0{last}, and "
        f"{UNLABELLED} where there is no label. The set's description does not fit its examples: prepare it again."
    )
