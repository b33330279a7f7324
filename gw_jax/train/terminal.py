"""Terminal output of a run: a progress bar or one line per epoch, on streams that may be closed."""

import logging
import os
import sys
import threading
import time
import types
from collections.abc import Mapping
from typing import Any

from gw_jax.train.distributed import is_main


class Terminal:
    """A progress bar on a terminal; elsewhere one line per epoch on standard error. Only process 0 shows anything.

    Args:
        total: steps of the whole run.
        step: steps that are done.
        steps_per_epoch: steps between two lines.
        progress_bar: whether a terminal gets a bar.
        shown: metrics beside the bar, by short name: ``{"loss": "train/loss"}``.
    """

    def __init__(self, *, total: int, step: int, steps_per_epoch: int, progress_bar: bool, shown: Mapping[str, str]):
        self._total, self._steps_per_epoch, self._shown = total, steps_per_epoch, shown
        self._started, self._first_step = time.perf_counter(), step
        self._bar: Any = None
        self._quiet = not is_main()
        if progress_bar and not self._quiet and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            # Terminals in containers often report 0 rows and columns, in which tqdm prints nothing.
            size = {"dynamic_ncols": True} if _has_size() else {"ncols": 100, "nrows": 20}
            self._bar = tqdm(total=total, initial=step, unit="step", **size)

    def advance(self) -> None:
        """Counts one step."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows what was written last: beside the bar, or as a line where ``step`` ends an epoch."""
        if self._bar is not None:
            found = {short: values[name] for short, name in self._shown.items() if name in values}
            self._bar.set_postfix({short: f"{x:.0f}" if x >= 100 else f"{x:.4f}" for short, x in found.items()})
        elif step % self._steps_per_epoch == 0:
            seconds_per_step = (time.perf_counter() - self._started) / max(step - self._first_step, 1)
            left = f"{seconds_per_step * (self._total - step):.0f} s left" if step < self._total else "done"
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            # A run of a length in steps may end within an epoch.
            num_epochs = -(-self._total // self._steps_per_epoch)
            self.say(f"epoch {step // self._steps_per_epoch}/{num_epochs}  {numbers}  {left}")

    def say(self, message: str) -> None:
        """Prints a line to standard error without breaking the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar and leaves it on the screen."""
        if self._bar is not None:
            self._bar.close()


def _has_size() -> bool:
    """Whether the terminal behind standard error reports its size."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return size.columns > 0 and size.lines > 0


def tolerate_closed_streams() -> None:
    """From now on, what is printed to a closed pipe or terminal, or to a file on a full disk, is lost without an error.

    A run of days must not end because ``| head`` ended, or because the terminal that started it was closed.
    """
    sys.stdout = _TolerantStream(sys.stdout)
    sys.stderr = _TolerantStream(sys.stderr)


def quiet_libraries() -> None:
    """From now on, libraries do not print what the run says itself.

    TFDS warns about every data set that is not prepared yet. Where a save fails, Orbax logs one traceback per thread, and
    tensorstore one per array whose event loop has ended; the run raises the same failure and reports it in one line.
    """
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    absl_logging.get_absl_logger().addFilter(lambda record: not record.exc_info)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        if str(error) != "Event loop is closed" or threading.current_thread() is threading.main_thread():
            before(kind, error, trace)

    sys.excepthook = report


class _TolerantStream:
    """A text stream whose writes cannot fail. Everything else is that of ``stream``."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._discard()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def _discard(self) -> None:
        """Redirects the stream to the null device: Python reports what it cannot flush at exit."""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except (OSError, ValueError, AttributeError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
