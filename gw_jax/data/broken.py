"""Examples that cannot be read or decoded: counted, named, and the errors that are none of a single example."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gw_jax.data.decoding import ImageTypeError
from gw_jax.errors import DataError, one_line

Batch = dict[str, np.ndarray]

# How many of the examples after a broken one are tried in its place.
MAX_SUBSTITUTES = 100
# Of a broken example: its index, -1 for none, and why it cannot be read.
BROKEN = np.dtype([("index", np.int64), ("reason", "S200")])


class BrokenRecords:
    """Counts the examples that could not be read or decoded, and names each once on standard error.

    Args:
        source: the examples; its ``where(index)`` names one, if it has that method.
        limit: how many may be broken.

    Attributes:
        indices: the broken examples so far.
        failure: the error that ends the run, once there are more than ``limit``.
    """

    def __init__(self, source: Sequence[Any], limit: int):
        self._source, self._limit = source, limit
        self.indices: set[int] = set()
        self.failure: DataError | None = None

    def collect(self, batch: Batch) -> Batch:
        """``batch`` without its field ``broken``, an array of type :data:`BROKEN`."""
        broken = batch.pop("broken")
        for record in np.unique(broken[broken["index"] >= 0]):
            index = int(record["index"])
            if index in self.indices:
                continue
            self.indices.add(index)
            print(
                f"warning: {name_of(self._source, index)} cannot be read or decoded ({record['reason'].decode()}) and was "
                f"skipped ({len(self.indices)} so far).",
                file=sys.stderr,
                flush=True,
            )
        if len(self.indices) > self._limit and self.failure is None:
            self.failure = DataError(
                f"{len(self.indices)} examples cannot be read or decoded, the last of them named above; "
                f"config.data.max_broken={self._limit} are allowed. Copy or prepare the data again, or raise that limit."
            )
        return batch


def name_of(source: Sequence[Any], index: int) -> str:
    """The name of an example in messages."""
    return source.where(index) if hasattr(source, "where") else f"example {index}"


@contextlib.contextmanager
def fatal_errors(source: Sequence[Any], index: int) -> Iterator[None]:
    """Errors that are not about one broken example and must not be counted as such."""
    try:
        yield
    except ImageTypeError as error:
        raise DataError(f"{name_of(source, index)} cannot be used: {error}") from error
    except MemoryError as error:
        raise DataError(
            f"Memory ran out while {name_of(source, index)} was decoded. Lower config.data.num_workers, "
            "config.data.num_threads or the batch size."
        ) from error


def broken_record(index: int = -1, error: Exception | None = None) -> np.ndarray:
    """The field ``broken`` of an example, of type :data:`BROKEN`; without arguments, that of one that is not broken."""
    reason = "" if error is None else one_line(f"{type(error).__name__}: {error}", BROKEN["reason"].itemsize)
    return np.array((index, reason.encode("ascii", "replace")), BROKEN)


def nothing_readable(index: int, broken: np.ndarray) -> DataError:
    """The error where no example can replace the broken one at ``index``."""
    return DataError(
        f"None of the examples from {index} on can be read or decoded ({broken['reason'].item().decode()}). Copy or "
        "prepare the data again."
    )
