"""Worker processes: their initialisation, and a watchdog for their death.

Grain 0.2.18 reports a worker that has died, except one that died while writing to its queue: then the reader waits for the
rest forever. This file can be removed once Grain's reader no longer does.
"""

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# A dead worker is tolerated while batches still arrive.
_SECONDS_WITHOUT_BATCH = 5.0
_SECONDS_TO_CLOSE = 10.0


class WorkerDiedError(Exception):
    """A worker process has ended unexpectedly."""


def init_worker(index: int, count: int) -> None:
    """Initialises a new worker: Ctrl-C in the terminal is for the run only, and the worker ends when the run does."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Linux's parent-death signal would come too early: when the thread that started this process ends.
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


class WatchedIterator(Iterator[Any]):
    """The batches of the iterator ``start()``, which worker processes fill; a thread pulls it, and this one watches.

    Raises:
        WorkerDiedError: a worker died. Make a new iterator that starts where this one stopped.
    """

    def __init__(self, start: Callable[[], Any]):
        self._results: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
        self._closing = threading.Event()
        self._others = set(multiprocessing.active_children())
        self._workers: set[Any] = set()
        self._began = False
        self._iterator = start()
        self._thread = threading.Thread(target=self._pull, daemon=True)
        self._thread.start()

    def __next__(self) -> Any:
        waiting_since = time.monotonic()
        while True:
            try:
                batch, error = self._results.get(timeout=0.5)
                break
            except queue.Empty:
                self._track_workers()
                dead = [worker for worker in self._workers if worker.exitcode not in (None, 0)]
                if dead and time.monotonic() - waiting_since > _SECONDS_WITHOUT_BATCH:
                    raise WorkerDiedError(f"exit code {dead[0].exitcode}") from None
        self._track_workers()
        self._began = True
        if error is None:
            return batch
        if isinstance(error, RuntimeError) and "Worker process" in str(error):
            raise WorkerDiedError(str(error)) from error
        raise error

    def close(self) -> None:
        """Ends the workers: in order, or by SIGKILL where one of them is dead or does not answer."""
        self._closing.set()
        deadline = time.monotonic() + _SECONDS_TO_CLOSE
        dead = any(worker.exitcode not in (None, 0) for worker in self._workers)
        while self._thread.is_alive() and not dead and time.monotonic() < deadline:
            try:
                self._results.get(timeout=0.05)
            except queue.Empty:
                continue
        for worker in self._workers:
            if worker.exitcode is None:
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()

    def _track_workers(self) -> None:
        """Records the workers, which start with the first batch."""
        if not self._began:
            self._workers |= set(multiprocessing.active_children()) - self._others

    def _pull(self) -> None:
        try:
            for batch in self._iterator:
                if self._closing.is_set():
                    break
                self._results.put((batch, None))
            else:
                self._results.put((None, StopIteration()))
        except BaseException as error:  # Raised by __next__.
            self._results.put((None, error))
        if self._closing.is_set():
            self._iterator.close()
