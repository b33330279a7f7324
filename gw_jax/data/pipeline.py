"""Batches of uint8 images from a prepared data set, in an order that depends on seed and epoch only.

An epoch is one global shuffle of the training split, cut into global batches; what is left over is dropped. A process
takes its consecutive share of every global batch, so neither the order nor a resume depends on the number of processes.
Evaluation visits every example of the split once: the last batch is padded and a mask says what counts.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from gw_jax.data.examples import Batch, BrokenRecords, EvalExamples, Share, TrainExamples
from gw_jax.data.images import Transform
from gw_jax.data.reading import BatchReader
from gw_jax.errors import DataError, raise_missing_package


class TrainBatches(Iterator[Batch]):
    """Training batches ``{"image": uint8 [b, h, w, c], "label": int32 [b]}`` of this process, to the end of the run.

    An example that cannot be read is named on standard error, counted, and replaced by the one after it in the data set.

    Args:
        source: random access to the examples of the training split: ``{"image": bytes or array, "label": int}``.
        batch_size: examples of the global batch.
        num_epochs: length of the run.
        seed: decides the order and the random crops.
        transform: how images get their size.
        channels: 1 or 3, for encoded images.
        process_index: which of the processes this is.
        process_count: number of processes; divides ``batch_size``.
        num_threads: reading and decoding threads, in each worker if there are any.
        num_workers: reading and decoding processes; 0 leaves the work to threads of this one.
        max_broken: examples that may be broken; one more ends the run.

    Raises:
        DataError: the split has less than a batch.
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
                f"data.batch_size={batch_size} exceeds the {len(source)} examples of the training split; "
                f"choose at most {len(source)}."
            )
        per_epoch = self.steps_per_epoch * batch_size
        share = Share(
            batch_size=batch_size,
            first=process_index * (batch_size // process_count),
            size=batch_size // process_count,
        )
        load = TrainExamples(
            source=source,
            order=grain.MapDataset.range(len(source)).seed(seed).shuffle()[:per_epoch].repeat(num_epochs),
            share=share,
            transform=transform or Transform(),
            channels=channels,
            seed=seed,
        )
        self.broken = BrokenRecords(source, max_broken)
        self._reader = BatchReader(
            load,
            share.size,
            self.steps_per_epoch * num_epochs,
            cyclic=False,
            num_threads=num_threads,
            num_workers=num_workers,
        )

    def __next__(self) -> Batch:
        return self.broken.take(self._reader.read())

    def get_state(self) -> dict[str, Any]:
        """The position in the order, as JSON values; the same in every process."""
        return {"next_index": self._reader.position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position that :meth:`get_state` returned."""
        self.skip_to(state["next_index"])

    def skip_to(self, step: int) -> None:
        """Goes on after ``step`` batches from the start, without reading those."""
        self._reader.seek(step)

    def close(self) -> None:
        """Ends the workers, if there are any."""
        self._reader.close()


class EvalBatches:
    """This process's share of the evaluation split: image, label and ``mask`` (bool ``[b]``, false for padding).

    Every pass over it gives the same batches, and every process gets the same number of them. Workers stay alive between
    two passes. Examples with several right answers have these in ``labels``, bool ``[b, num_classes]``; one without any
    does not count, nor does one that cannot be read. Arguments are as for :class:`TrainBatches`.
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
        size = batch_size // process_count
        load = EvalExamples(
            source=source,
            share=Share(batch_size=batch_size, first=process_index * size, size=size),
            transform=transform or Transform(),
            channels=channels,
            num_classes=num_classes,
        )
        self.broken = BrokenRecords(source, max_broken)
        self._reader = BatchReader(
            load,
            size,
            -(-len(source) // batch_size),
            cyclic=num_workers > 0,
            num_threads=num_threads,
            num_workers=num_workers,
        )

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the split."""
        self._reader.seek(0)
        for _ in range(self._reader.num_batches):
            yield self.broken.take(self._reader.read())

    def close(self) -> None:
        """Ends the workers, if there are any."""
        self._reader.close()
