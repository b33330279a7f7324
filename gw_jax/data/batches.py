"""What all batches of a process share: the count of broken examples, and substitutes where other processes still train."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gw_jax.data.broken import Batch, BrokenRecords
from gw_jax.data.loader import BatchReader
from gw_jax.errors import DataError

# Examples that are tried for a substitute batch, at most.
_MAX_SUBSTITUTES = 1000


class Batches:
    """Batches from a reader, with substitutes after a failure where other processes still train.

    Args:
        source: the examples, which messages name.
        reader: reads them; each has the field ``broken``.
        max_broken: examples that may be broken.
        process_count: number of processes.

    Attributes:
        broken: the examples that could not be read so far.
        failure: the error that ended the reading. A single process raises it at once. One of several processes keeps it
            here and yields substitute batches, because a step without this process would never end. Let all processes
            agree to stop, and raise it then.
    """

    def __init__(self, source: Sequence[Any], reader: BatchReader, *, max_broken: int, process_count: int):
        self.broken = BrokenRecords(source, max_broken)
        self.failure: DataError | None = None
        self._reader, self._process_count = reader, process_count
        self._readable: Batch | None = None

    def _read(self) -> Batch:
        """The next batch, or a substitute for it once there is a failure."""
        if self.failure is None:
            try:
                batch = self.broken.collect(self._reader.read())
            except DataError as error:
                self.failure = error
            else:
                self.failure = self.broken.failure
                if self.failure is None or self._process_count > 1:
                    return batch
        if self._process_count == 1:
            self._reader.close()
            raise self.failure
        position = self._reader.position
        self._reader.skip()
        return self._substitute(position, self.failure)

    def _substitute(self, position: int, failure: DataError) -> Batch:
        """A batch of the shapes of the one at ``position``, or ``failure`` if there is none.

        Here: one example that can be read, repeated. Not an earlier batch: that would have to be kept for it.
        """
        del position
        if self._readable is None:
            self._readable = self._find_readable(failure)
        return self._readable

    def _find_readable(self, failure: DataError) -> Batch:
        for position in range(min(self._reader.num_examples, _MAX_SUBSTITUTES)):
            try:
                example = self._reader.load(position)
            except DataError:
                continue
            example.pop("broken")
            return {name: np.stack([value] * self._reader.batch_size) for name, value in example.items()}
        raise failure

    def close(self) -> None:
        """Ends the workers, if there are any."""
        self._reader.close()


def check_identity(saved: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Checks that a checkpoint belongs to the data at hand.

    Args:
        saved: ``num_examples`` and ``digest`` of the data in the state of a checkpoint, among others.
        found: those of the data.

    Raises:
        DataError: the state is that of another data set, in which the same position stands for other examples.
    """
    names = ("num_examples", "digest")
    if [saved.get(name) for name in names] != [found.get(name) for name in names]:
        raise DataError(
            f"The checkpoint belongs to a run on {saved.get('num_examples')} examples of a data set with the digest "
            f"{saved.get('digest')}; this set has {found['num_examples']} and the digest {found['digest']}. It was "
            "prepared anew or is another set, so the order of examples would change. Resume with the data directory of "
            "before, or start a new run in another --workdir."
        )
