"""Batches read ahead by threads of this process, or by worker processes, which are restarted when they die.

A position is the number of a batch, whichever thread or process reads it, so no result depends on how many there are.
Worker processes import this package and therefore JAX, but never use it: they see no device.
"""

import gc
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gw_jax.data.workers import WatchedIterator, WorkerDiedError, init_worker
from gw_jax.errors import DataError, raise_missing_package

Batch = dict[str, np.ndarray]

# Examples that a thread loads per task, at most: a task alone costs a tenth of the time of an image.
CHUNK = 16

# How often in a row dead workers are restarted before the run gives up.
MAX_RESTARTS = 3


class BatchReader:
    """Batches ``position, position + 1, ...`` of ``batch_size`` examples each, read ahead.

    Args:
        load: gives the example at a position ``0 <= position < num_batches * batch_size``; picklable where there are
            workers.
        batch_size: examples of a batch, of this process.
        num_batches: batches of one pass.
        cyclic: whether one pass follows the other without end.
        num_threads: reading threads, per worker if there are any.
        num_workers: reading processes.
        chunk: examples that a thread loads per task, at most.
    """

    def __init__(
        self,
        load: Callable[[int], Batch],
        batch_size: int,
        num_batches: int,
        *,
        cyclic: bool,
        num_threads: int,
        num_workers: int,
        chunk: int = CHUNK,
    ):
        self.load, self.batch_size, self.num_batches, self._cyclic = load, batch_size, num_batches, cyclic
        self._num_threads, self._num_workers, self._chunk = num_threads, num_workers, chunk
        self.position = 0
        self._iterator: Any = None
        self._restarts = 0

    @property
    def num_examples(self) -> int:
        """Examples of one pass."""
        return self.num_batches * self.batch_size

    def read(self) -> Batch:
        """The batch at :attr:`position`, which advances.

        Raises:
            StopIteration: the pass is over, and the reader is not cyclic.
            DataError: an example cannot be used, or workers die repeatedly.
        """
        while True:
            self._check_end()
            if self._iterator is None:
                self._iterator = self._start()
            try:
                batch = next(self._iterator)
            except WorkerDiedError as error:
                self.close()
                self._restarts += 1
                if self._restarts > MAX_RESTARTS:
                    raise DataError(
                        f"Reading workers died {self._restarts} times in a row ({error}). If memory ran out, lower "
                        "config.data.num_workers or the batch size."
                    ) from error
                print("warning: a reading worker died; the workers are restarted.", file=sys.stderr, flush=True)
                continue
            self._restarts = 0
            self._advance()
            return batch

    def skip(self) -> None:
        """Advances :attr:`position` without reading, and ends the workers.

        Raises:
            StopIteration: as in :meth:`read`.
        """
        self.close()
        self._check_end()
        self._advance()

    def seek(self, position: int) -> None:
        """Continues at ``position``, without reading the batches before it."""
        if position != self.position:
            self.close()
            self.position = position

    def _check_end(self) -> None:
        if self.position >= self.num_batches and not self._cyclic:
            self.close()
            raise StopIteration

    def _advance(self) -> None:
        self.position += 1
        if self._cyclic:
            self.position %= self.num_batches

    def close(self) -> None:
        """Ends the workers, if there are any."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None and hasattr(iterator, "close"):
            iterator.close()
            del iterator
            if self._num_workers:
                # Grain's last exception keeps its last batch, which is in shared memory, in a reference cycle.
                gc.collect()

    def _start(self) -> Iterator[Batch]:
        try:
            import grain
        except ImportError as error:
            raise_missing_package(error, "The input pipeline")
        load, total, offset = self.load, self.num_examples, self.position * self.batch_size

        def example(position: int) -> Batch:
            return load((position + offset) % total)

        left = sys.maxsize // self.batch_size * self.batch_size if self._cyclic else total - offset
        if not self._num_workers:
            # Two batches are read ahead; threads share the examples of a batch.
            size = math.gcd(self.batch_size, self._chunk)
            per_batch = self.batch_size // size
            options = grain.ReadOptions(self._num_threads, max(2 * per_batch, self._num_threads))
            chunks = grain.MapDataset.range(left // size).map(
                lambda chunk: stack_examples([example(chunk * size + rank) for rank in range(size)])
            )
            return iter(chunks.to_iter_dataset(options).batch(per_batch, batch_fn=_joined))
        from absl import flags

        # Grain reads flags of its own when it starts a process.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Workers read whole batches in turn, one per thread, so a worker holds as many batches as it has threads.
        examples = grain.MapDataset.range(left).map(example)
        reading = examples.batch(self.batch_size, batch_fn=stack_examples).to_iter_dataset(
            grain.ReadOptions(self._num_threads, self._num_threads)
        )
        workers = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=1)
        return WatchedIterator(reading.mp_prefetch(workers, worker_init_fn=init_worker).__iter__)


def stack_examples(examples: Sequence[Batch]) -> Batch:
    """Stacks the fields of examples.

    Raises:
        DataError: the images differ in shape.
    """
    _check_shapes({example["image"].shape for example in examples})
    if len(examples) == 1:
        return {name: value[None] for name, value in examples[0].items()}
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _joined(chunks: Sequence[Batch]) -> Batch:
    _check_shapes({chunk["image"].shape[1:] for chunk in chunks})
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _check_shapes(shapes: set[tuple[int, ...]]) -> None:
    if len(shapes) > 1:
        raise DataError(
            f"The images of a batch differ in shape: {', '.join(map(str, sorted(shapes)))}. Set config.data.image_size to "
            "the edge in pixels to which they are resized."
        )
