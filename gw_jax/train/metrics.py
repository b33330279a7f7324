"""Where the numbers of a run go: ``metrics.jsonl`` always, TensorBoard files and the terminal where wanted."""

import json
import os
import pathlib
import sys
import time
from typing import Any

from gw_jax.errors import raise_missing_package
from gw_jax.files import write_atomically
from gw_jax.train.distributed import is_main

METRICS_FILE = "metrics.jsonl"
# What depends on the clock; all other numbers of a run are the same however often it is stopped and started again.
CLOCK_METRICS = ("train/images_per_sec", "train/step_ms", "train/data_wait", "train/mfu")


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line that a crash cut off is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class MetricsWriter:
    """Appends lines to ``metrics.jsonl`` and scalars to TensorBoard files.

    A run that goes on from step ``step`` first drops what was written after that step (and, unless ``evaluated``,
    the evaluation at it): the steps are taken again. Only the first of several processes writes.
    """

    def __init__(self, workdir: pathlib.Path, *, step: int, evaluated: bool, tensorboard: bool):
        self._file = self._tensorboard = None
        if not is_main():
            return
        kept = [
            line
            for line in read_metrics(workdir)
            if line["step"] < step or (line["step"] == step > 0 and (evaluated or "eval/count" not in line))
        ]
        write_atomically(workdir / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = (workdir / METRICS_FILE).open("a")
        if tensorboard:
            try:
                import tensorboardX
            except ImportError as error:
                raise_missing_package(error, "config.log.tensorboard")
            self._tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one line, on disk when this returns."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "epoch": epoch, **values}, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes all files."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class Stopwatch:
    """Where the time of training goes, without compilation, evaluation and saving."""

    def __init__(self) -> None:
        self._running_since: float | None = None
        self._seconds, self._waited = 0.0, 0.0
        self._images, self._steps = 0, 0

    def start(self) -> None:
        """Starts, or goes on after :meth:`pause`; call it when no step is under way."""
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def pause(self) -> None:
        """Stops counting time until :meth:`start`."""
        if self._running_since is not None:
            self._seconds += time.perf_counter() - self._running_since
            self._running_since = None

    def count(self, images: int, waited: float) -> None:
        """Counts a step over ``images``, ``waited`` seconds of which went by until its batch was there."""
        if self._running_since is not None:
            self._images, self._steps, self._waited = self._images + images, self._steps + 1, self._waited + waited

    def read(self, peak_steps_per_second: float | None) -> dict[str, float]:
        """What was counted since the last call; empty if nothing was. Call it when all steps have ended.

        Keys: ``images_per_sec``, ``step_ms``, ``data_wait`` (share of the time spent waiting for batches) and, where
        ``peak_steps_per_second`` is known, ``mfu`` (model FLOPs utilisation: steps a second as a share of it).
        """
        running = self._running_since is not None
        self.pause()
        values = {}
        if self._steps and self._seconds:
            values = {
                "images_per_sec": self._images / self._seconds,
                "step_ms": 1e3 * self._seconds / self._steps,
                "data_wait": min(self._waited / self._seconds, 1.0),
            }
            if peak_steps_per_second is not None:
                values["mfu"] = self._steps / self._seconds / peak_steps_per_second
        self._seconds, self._waited, self._images, self._steps = 0.0, 0.0, 0, 0
        if running:
            self.start()
        return values


class Terminal:
    """A progress bar on a terminal; elsewhere a line an epoch on standard error."""

    def __init__(self, *, total: int, step: int, steps_per_epoch: int, progress_bar: bool):
        self._total, self._steps_per_epoch = total, steps_per_epoch
        self._started, self._first_step = time.perf_counter(), step
        self._bar = None
        self._quiet = not is_main()
        if progress_bar and sys.stderr.isatty() and not self._quiet:
            from tqdm import tqdm

            # Terminals in containers often say that they have 0 rows and columns; tqdm would print nothing there.
            size = {"dynamic_ncols": True} if _has_size() else {"ncols": 100, "nrows": 20}
            self._bar = tqdm(total=total, initial=step, unit="step", **size)

    def advance(self) -> None:
        """Counts one step."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows what was written last."""
        if self._bar is not None:
            known = {"loss": "train/loss", "top1": "train/top1", "eval_top1": "eval/top1"}
            shown = {short: f"{values[name]:.4f}" for short, name in known.items() if name in values}
            if "train/images_per_sec" in values:
                shown["images/s"] = f"{values['train/images_per_sec']:.0f}"
            self._bar.set_postfix(shown)
            return
        if step % self._steps_per_epoch == 0:
            seconds_a_step = (time.perf_counter() - self._started) / max(step - self._first_step, 1)
            left = f"{seconds_a_step * (self._total - step):.0f} s left" if step < self._total else "done"
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.say(f"epoch {step // self._steps_per_epoch}/{self._total // self._steps_per_epoch}  {numbers}  {left}")

    def say(self, message: str) -> None:
        """Prints a line without breaking the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _has_size() -> bool:
    """Whether the terminal behind standard error knows how large it is."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return size.columns > 0 and size.lines > 0
