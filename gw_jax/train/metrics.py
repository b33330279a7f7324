"""The metrics of a run on disk: one JSON object per line of ``metrics.jsonl``, and TensorBoard files."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from gw_jax.errors import TrainingError, raise_missing_package
from gw_jax.files import write_atomically
from gw_jax.train.distributed import is_main

METRICS_FILE = "metrics.jsonl"
# A copy of a file of which lines could not be read, from before those lines were removed.
DAMAGED_FILE = "metrics-damaged.jsonl"
_STEP = re.compile(rb'\{"step": (\d+),')


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """All lines of ``metrics.jsonl`` that can be read, those after a damaged line, too; none if there is no file.

    A warning on standard error names the damaged lines. Blank lines are skipped.
    """
    lines, damaged = _parse(workdir / METRICS_FILE)
    if damaged:
        _warn(workdir / METRICS_FILE, [line.number for line in damaged], "left out")
    return lines


def is_evaluation(line: dict[str, Any]) -> bool:
    """Whether ``line`` holds the metrics of an evaluation."""
    return any(name.startswith("eval/") for name in line)


@dataclasses.dataclass(frozen=True)
class _Damaged:
    """A line that cannot be read: its number, from 1; how many readable lines precede it; its step, if it can be read."""

    number: int
    num_before: int
    step: int | None


def _parse(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[_Damaged]]:
    """The lines that can be read, and those that cannot."""
    lines: list[dict[str, Any]] = []
    damaged = []
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error}.") from error
    for number, text in enumerate(content.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
        else:
            legible = _STEP.match(text)
            damaged.append(_Damaged(number, len(lines), int(legible[1]) if legible else None))
    return lines, damaged


def _warn(path: pathlib.Path, numbers: list[int], what: str) -> None:
    several = len(numbers) > 1
    shown = ", ".join(map(str, numbers[:10])) + (" ..." if len(numbers) > 10 else "")
    print(
        f"warning: Line{'s' if several else ''} {shown} of {path} cannot be read and {'are' if several else 'is'} {what}.",
        file=sys.stderr,
    )


class MetricsWriter:
    """Appends lines to ``metrics.jsonl`` and scalars to TensorBoard files. Only process 0 writes.

    A run that resumes from step ``step`` repeats the steps after it, so their lines are removed first, and, unless
    ``evaluated``, the evaluation at ``step``. All other lines stay. Damaged lines are removed, too. Unless known to
    belong to repeated steps, a warning gives their numbers, and ``metrics-damaged.jsonl`` keeps the file as it was.

    Args:
        workdir: the directory of both.
        step: the step from which the run continues.
        evaluated: whether the evaluation that is due at ``step``, if any, has been done.
        tensorboard: whether to write TensorBoard files.
        evaluation: the line of the evaluation at ``step``, ``{"step": ..., "epoch": ..., "eval/loss": ...}``, from the
            checkpoint. It is added if it is missing in the file.
        config: fields of the run by name, shown as a text in TensorBoard.

    Raises:
        TrainingError: the files cannot be read or written.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        step: int,
        evaluated: bool,
        tensorboard: bool,
        evaluation: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ):
        self._path = workdir / METRICS_FILE
        self._file: Any = None
        self._tensorboard: _TensorBoard | None = None
        if not is_main():
            return
        lines, damaged = _parse(self._path)
        kept = [line for line in lines if _is_before(line, step, evaluated)]
        lost = [line.number for line in damaged if not _is_repeated(line, lines, step, evaluated)]
        with self._named_failures():
            if lost:
                shutil.copyfile(self._path, workdir / DAMAGED_FILE)
                _warn(self._path, lost, f"removed; {DAMAGED_FILE} is a copy of the file")
            if evaluation is not None and not any(line["step"] == step and is_evaluation(line) for line in kept):
                kept.append(evaluation)
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = self._path.open("a")
            if tensorboard:
                self._tensorboard = _TensorBoard(workdir / "tensorboard", step, config or {})

    def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one line, which is on disk when this returns.

        Raises:
            TrainingError: it cannot be written, or the file was removed.
        """
        if self._file is None:
            return
        with self._named_failures():
            self._file.write(json.dumps({"step": step, "epoch": epoch, **values}, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise FileNotFoundError("it was removed while the run wrote it")
            if self._tensorboard is not None:
                self._tensorboard.write(step, values)

    def close(self) -> None:
        """Closes all files. Every line is on disk before, so nothing can be lost here."""
        for file in (self._file, self._tensorboard):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"The metrics of the run cannot be written to {self._path}: {error.strerror or error}. What was saved in "
                "checkpoints stays. Make room or restore the directory; "
                "the same command then resumes from the last checkpoint."
            ) from error


def _is_before(line: dict[str, Any], step: int, evaluated: bool) -> bool:
    """Whether a run that resumes from ``step`` does not write ``line`` again."""
    return line["step"] < step or (line["step"] == step > 0 and (evaluated or not is_evaluation(line)))


def _is_repeated(damaged: _Damaged, lines: list[dict[str, Any]], step: int, evaluated: bool) -> bool:
    """Whether the resumed run is known to write the damaged line again."""
    before = lines[: damaged.num_before]
    if damaged.step is not None and damaged.step > step:
        return True
    if any(not _is_before(line, step, evaluated) for line in before):
        return True
    # No line that the run keeps follows its last line of this step.
    at_step = [line for line in before if line["step"] == step]
    return any(is_evaluation(line) for line in at_step) or (bool(at_step) and not evaluated)


class _TensorBoard:
    """Scalars in a TensorBoard file, written at once.

    Not tensorboardX's SummaryWriter: it writes in a thread behind a queue, and where the disk is full that thread dies and
    the run waits for the queue for ever.
    """

    def __init__(self, directory: pathlib.Path, step: int, config: dict[str, Any]):
        try:
            from tensorboardX import event_file_writer, proto, summary
        except ImportError as error:
            raise_missing_package(error, "config.log.tensorboard")
        self._event, self._scalar = proto.event_pb2.Event, summary.scalar
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(directory / "events"), f".{os.getpid()}")
        # TensorBoard drops what earlier starts of the run wrote from here on.
        session = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        self._writer.write_event(self._event(wall_time=time.time(), step=step + 1, session_log=session))
        if config:
            # A table, as TensorBoard renders Markdown.
            rows = "".join(f"| {name} | `{json.dumps(value)}` |\n" for name, value in config.items())
            text = summary.text("config", f"| field | value |\n|---|---|\n{rows}")
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=text))
        self._writer.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            event = self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
