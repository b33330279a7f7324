"""Batches of uint8 images from a prepared data set, in an order that depends on seed and epoch only.

An epoch is one global shuffle of the training split, cut into global batches; what is left over is dropped. A process
reads its own shard of every global batch, so neither the order nor a resume depends on the number of processes.
Evaluation visits every example of the split once: the last batch is padded, and a mask says which examples count.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gw_jax.data.batches import Batches, check_identity
from gw_jax.data.examples import Batch, EvalExamples, TrainExamples
from gw_jax.data.images import Transform
from gw_jax.data.loader import BatchReader
from gw_jax.data.shards import ProcessShard
from gw_jax.errors import DataError, raise_missing_package


class TrainBatches(Batches, Iterator[Batch]):
    """Training batches ``{"image": uint8 [b, h, w, c], "label": int32 [b]}`` of this process, to the end of the run.

    An example that cannot be read is named on standard error, counted, and replaced by the one after it in the data set.

    Args:
        source: random access to the examples of the training split: ``{"image": bytes or array, "label": int}``.
        batch_size: examples of the global batch.
        num_epochs: length of the run.
        seed: decides the order and the random crops.
        transform: how images get their size.
        channels: 1, 3 or 4, for encoded images.
        num_classes: labels must be below it; None for ``source.num_classes``, if there is such an attribute.
        process_index: which of the processes this is.
        process_count: number of processes; divides ``batch_size``.
        num_threads: reading and decoding threads, per worker if there are any.
        num_workers: reading and decoding processes; 0 leaves the work to threads of this one.
        max_broken: examples that may be broken, per process; one more ends the run.

    Raises:
        DataError: the split has less than a batch; and from ``next``, in a single process, whatever ends the reading (see
            :attr:`failure`): too many broken examples, an example without a valid label, workers that die.

    Example:
        >>> from gw_jax.data import TrainBatches, open_dataset
        >>> batches = TrainBatches(open_dataset("mnist5k").train, batch_size=64, num_epochs=1, seed=0, channels=1)
        >>> next(batches)["image"].shape, len(batches.get_state()) > 0
        ((64, 28, 28, 1), True)
        >>> batches.close()
    """

    def __init__(
        self,
        source: Sequence[Any],
        *,
        batch_size: int,
        num_epochs: int,
        seed: int,
        transform: Transform | None = None,
        channels: int = 3,
        num_classes: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int = 2,
        num_workers: int = 0,
        max_broken: int = 10,
    ):
        try:
            import grain
        except ImportError as error:
            raise_missing_package(error, "The input pipeline")
        self.steps_per_epoch = len(source) // batch_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"config.data.batch_size={batch_size} exceeds the {len(source)} examples of the training split; "
                f"choose at most {len(source)}."
            )
        per_epoch = self.steps_per_epoch * batch_size
        shard = ProcessShard.of(batch_size, process_index, process_count)
        load = TrainExamples(
            source=source,
            order=grain.MapDataset.range(len(source)).seed(seed).shuffle()[:per_epoch].repeat(num_epochs),
            shard=shard,
            transform=transform or Transform(),
            channels=channels,
            num_classes=_num_classes(source, num_classes),
            seed=seed,
        )
        reader = BatchReader(
            load,
            shard.size,
            self.steps_per_epoch * num_epochs,
            cyclic=False,
            num_threads=num_threads,
            num_workers=num_workers,
        )
        super().__init__(source, reader, max_broken=max_broken, process_count=process_count)
        self._identity = {"num_examples": len(source), "digest": getattr(source, "digest", None)}

    def __next__(self) -> Batch:
        return self._read()

    def get_state(self) -> dict[str, Any]:
        """The position in the order and what the order depends on, as JSON values; the same in every process."""
        return {"next_index": self._reader.position, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes at a position that :meth:`get_state` returned.

        Raises:
            DataError: the state is that of another data set, in which the same position stands for other examples.
        """
        if state.get("num_examples") is not None:
            check_identity(state, self._identity)
        self.skip_to(state["next_index"])

    def skip_to(self, step: int) -> None:
        """Continues after ``step`` batches from the start, without reading those."""
        self._reader.seek(step)


class EvalBatches(Batches):
    """This process's shard of the evaluation split: image, label and ``mask`` (bool ``[b]``, false for padding).

    Every pass over it gives the same batches, and every process gets the same number of them. Workers stay alive between
    two passes. Examples with several right answers have these in ``labels``, bool ``[b, num_classes]``. An example does not
    count if it has no label (-1 or no right answer) or cannot be read. Arguments and errors are those of
    :class:`TrainBatches`.

    Example:
        >>> from gw_jax.data import EvalBatches, open_dataset
        >>> batches = EvalBatches(open_dataset("mnist5k").evaluation, batch_size=300, channels=1)
        >>> [int(batch["mask"].sum()) for batch in batches]
        [300, 300, 300, 100]
        >>> batches.close()
    """

    def __init__(
        self,
        source: Sequence[Any],
        *,
        batch_size: int,
        transform: Transform | None = None,
        channels: int = 3,
        num_classes: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int = 2,
        num_workers: int = 0,
        max_broken: int = 10,
    ):
        shard = ProcessShard.of(batch_size, process_index, process_count)
        load = EvalExamples(
            source=source,
            shard=shard,
            transform=transform or Transform(),
            channels=channels,
            num_classes=_num_classes(source, num_classes),
        )
        reader = BatchReader(
            load,
            shard.size,
            -(-len(source) // batch_size),
            cyclic=num_workers > 0,
            num_threads=num_threads,
            num_workers=num_workers,
        )
        super().__init__(source, reader, max_broken=max_broken, process_count=process_count)

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the split."""
        self._reader.seek(0)
        for _ in range(self._reader.num_batches):
            batch = self._read()
            yield batch if self.failure is None else {**batch, "mask": np.zeros_like(batch["mask"])}


def _num_classes(source: Sequence[Any], given: int | None) -> int | None:
    return given if given is not None else getattr(source, "num_classes", None)
