"""Single examples by their position in the order: read, decoded, cropped; and what happens where one is broken."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gw_jax.data.images import Transform, eval_image, train_image
from gw_jax.errors import DataError

Batch = dict[str, np.ndarray]

# How many of the examples after a broken one are tried in its place.
MAX_SUBSTITUTES = 100


class BrokenRecords:
    """Examples that could not be read or decoded: named once each, counted, and too many end the run.

    Args:
        source: the examples; its ``where(index)`` names one, if it has that method.
        limit: how many may be broken.
    """

    def __init__(self, source: Sequence[Any], limit: int):
        self._source, self._limit = source, limit
        self.indices: set[int] = set()

    def take(self, batch: Batch) -> Batch:
        """``batch`` without its field ``broken``: the index of each broken example, -1 for the others.

        Raises:
            DataError: more than ``limit`` are broken.
        """
        found = batch.pop("broken")
        for index in sorted({*found[found >= 0].tolist()} - self.indices):
            self.indices.add(index)
            name = self._source.where(index) if hasattr(self._source, "where") else f"example {index}"
            print(
                f"warning: {name} cannot be read or decoded and was skipped ({len(self.indices)} so far).",
                file=sys.stderr,
                flush=True,
            )
        if len(self.indices) > self._limit:
            raise DataError(
                f"{len(self.indices)} examples cannot be read or decoded, the last of them named above; "
                f"config.data.max_broken={self._limit} are allowed. Copy or prepare the data again, or raise that limit."
            )
        return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """Which examples of a global batch a process reads: ``size`` of ``batch_size``, from ``first`` on."""

    batch_size: int
    first: int
    size: int

    def place(self, position: int) -> int:
        """The place in the global order of the example at ``position`` of this process."""
        step, rank = divmod(position, self.size)
        return step * self.batch_size + self.first + rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainExamples:
    """Training examples by their position in the run.

    ``order`` gives the index in the data set for a place in the global order. The random crop depends on ``seed`` and that
    place only.
    """

    source: Sequence[Any]
    order: Any
    share: Share
    transform: Transform
    channels: int
    seed: int

    def __call__(self, position: int) -> Batch:
        """The example with ``broken``, the index of an example in whose place it stands, or -1."""
        place = self.share.place(position)
        index = int(self.order[place])
        for substitute in range(min(len(self.source), MAX_SUBSTITUTES)):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, place])) if self.transform.crop else None
            try:
                example = self.source[(index + substitute) % len(self.source)]
                image = train_image(example["image"], self.channels, self.transform, rng)
            except Exception as error:  # Readers and decoders raise whatever they hit in damaged bytes.
                reason = error
                continue
            label = np.asarray(example["label"], np.int32)
            return {"image": image, "label": label, "broken": np.asarray(index if substitute else -1)}
        raise _nothing_readable(index, reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalExamples:
    """Evaluation examples by their position: the data set in its own order, padded to whole batches.

    Examples with ``real_label``, the set of right answers, get it as ``labels``, bool ``[num_classes]``.
    """

    source: Sequence[Any]
    share: Share
    transform: Transform
    channels: int
    num_classes: int | None

    def __call__(self, position: int) -> Batch:
        """The example with ``mask``, whether it counts, and ``broken``, its index if it cannot be read, else -1."""
        index = self.share.place(position)
        counts, broken = index < len(self.source), -1
        # Padding repeats a real example, so that it needs no case of its own in a network; the mask leaves it out.
        start = index if counts else 0
        for substitute in range(min(len(self.source), MAX_SUBSTITUTES)):
            try:
                example = self.source[(start + substitute) % len(self.source)]
                image = eval_image(example["image"], self.channels, self.transform)
            except Exception as error:  # As above.
                reason = error
                broken = start if counts else broken
                counts = False
                continue
            fields = self._labels(example)
            answered = bool(fields.pop("counts", True))
            counts = counts and answered
            return {"image": image, **fields, "mask": np.asarray(counts), "broken": np.asarray(broken)}
        raise _nothing_readable(start, reason)

    def _labels(self, example: Any) -> dict[str, Any]:
        if "real_label" not in example:
            return {"label": np.asarray(example["label"], np.int32)}
        right = np.zeros(self.num_classes or 0, bool)
        right[np.asarray(example["real_label"], np.int64)] = True
        return {"label": np.asarray(example["original_label"], np.int32), "labels": right, "counts": right.any()}


def _nothing_readable(index: int, reason: Exception) -> DataError:
    return DataError(
        f"None of the examples from {index} on can be read or decoded ({type(reason).__name__}: {reason}). Copy or prepare "
        "the data again."
    )
