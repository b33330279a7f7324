"""Checkpoints: the state, the position in the data and the metrics not yet written.

A checkpoint is complete or absent: it is written into a temporary directory, which is renamed last, with the checksums of
its files. :mod:`gw_jax.train.storage` writes and reads the arrays, by Orbax.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from gw_jax.errors import CheckpointError, one_line
from gw_jax.train import storage
from gw_jax.train.checkpoint_files import DIRECTORY, REPLACED, read_metric, rename, saved_steps, tidy
from gw_jax.train.checksums import DamageError, add_late_checksums, verify, write_checksums
from gw_jax.train.config import CheckpointConfig
from gw_jax.train.distributed import any_process, broadcast_from_main, is_main, run_on_main
from gw_jax.train.state import TrainState

_FORMAT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """The part of a checkpoint beside the state; JSON values.

    Attributes:
        data: position of the training data, as :meth:`TrainBatches.get_state` returns it.
        pending: metrics of each step since the last line of ``metrics.jsonl``: ``{name: [total, count]}``.
        epoch_totals: sums of the metrics over the steps of the epoch so far, ``{name: [total, count]}``.
        evaluated: whether the evaluation that is due at this step, if any, has been done.
        evaluation: step and metrics of the last evaluation, or None.
    """

    data: dict[str, Any]
    pending: list[dict[str, list[float]]]
    epoch_totals: dict[str, list[float]]
    evaluated: bool
    evaluation: dict[str, Any] | None


class Checkpoints:
    """The checkpoints of one work directory. Saving continues in the background; :meth:`close` waits for it.

    Args:
        workdir: the work directory.
        config: which checkpoints are kept.
        best_metric: the metric of the evaluation whose largest values are the best.
        read_only: whether the directory is left as it is; :meth:`save` is not called then.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, best_metric: str, *, read_only: bool = False):
        self.directory = (workdir / DIRECTORY).absolute()
        self._workdir, self._config, self._best_metric = workdir, config, best_metric
        self._opened: storage.Manager | None = None
        self._saving: int | None = None
        if not read_only:
            run_on_main("checkpoints tidied", lambda: tidy(self.directory))

    @property
    def _manager(self) -> storage.Manager:
        """Opened late: it reads the metrics of every checkpoint, and a damaged one must be set aside before."""
        if self._opened is None:
            with self._named_failures():
                self._opened = storage.open_manager(self.directory, self._config, self._best_metric, self._add_checksums)
        return self._opened

    def last_step(self) -> int | None:
        """The newest step that is saved."""
        return max(saved_steps(self._workdir), default=None)

    def best_step(self) -> int | None:
        """The saved step with the best evaluation, the later of two equal ones; the newest where none has been evaluated.

        Raises:
            CheckpointError: the metrics of a checkpoint cannot be read.
        """
        try:
            metrics = {step: read_metric(self.path(step), self._best_metric) for step in saved_steps(self._workdir)}
        except DamageError as error:
            raise CheckpointError(
                f"{error}, so the best checkpoint is not known. Nothing was changed. Use config.checkpoint.evaluate=last, "
                "or resume training, which sets damage aside."
            ) from error
        found = {step: metric for step, metric in metrics.items() if metric is not None}
        return max(found, key=lambda step: (found[step], step)) if found else self.last_step()

    def path(self, step: int) -> pathlib.Path:
        """The directory of the checkpoint of ``step``."""
        return self.directory / str(step)

    def save(self, state: TrainState, progress: Progress, metrics: dict[str, float] | None = None) -> pathlib.Path:
        """Starts to save; ``metrics`` of an evaluation let the checkpoint compete for the best.

        Raises:
            CheckpointError: this save or the one before failed, for instance because the disk is full.
        """
        step = int(state.step)
        best = None if metrics is None else {self._best_metric: metrics[self._best_metric]}
        content = {"format": _FORMAT, **dataclasses.asdict(progress)}
        self.wait()
        replaces = step in self._manager.all_steps()
        if replaces:
            # A stop during the evaluation saved this step, before its metrics were known. It stays until the new one is
            # complete.
            self._rename(self.path(step), self.directory / f"{REPLACED}{step}")
        self._saving = step
        with self._named_failures():
            storage.start_save(self._manager, step, _as_dict(state), content, best)
        if replaces:
            self.wait()
            if is_main():
                shutil.rmtree(self.directory / f"{REPLACED}{step}", ignore_errors=True)
        return self.path(step)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
        """Reads the checkpoint of ``step``, after verifying it, with the shapes, types and shardings of ``like``.

        Raises:
            CheckpointError: it is damaged, cannot be read, or belongs to another network.
        """
        outcome = broadcast_from_main("checkpoint verified", self._verified(step) if is_main() else {})
        if outcome["damage"] is not None:
            older = [other for other in saved_steps(self._workdir) if other < step]
            remedy = f"continue from step {max(older)}" if older else "start again from step 0"
            raise CheckpointError(
                f"The checkpoint {self.path(step)} is damaged: {outcome['damage']}. Nothing was changed. Move that "
                f"directory away to {remedy}."
            )
        if outcome["error"] is not None:
            raise CheckpointError(outcome["error"])
        return self._read(step, like)

    def restore_newest(self, like: TrainState) -> tuple[int, TrainState, Progress]:
        """Reads the newest checkpoint; sets those that are damaged aside, says so, and reads the one before.

        Process 0 verifies and decides, and the others follow. What cannot be read now, or does not fit the network, is not
        damaged: it stays where it is.

        Raises:
            CheckpointError: none can be used. None is set aside then.
        """
        damaged: dict[int, str] = {}
        for step in broadcast_from_main("checkpoints listed", self._newest_first() if is_main() else []):
            outcome = broadcast_from_main("checkpoint verified", self._verified(step) if is_main() else {})
            if outcome["error"] is not None:
                raise CheckpointError(outcome["error"])
            if outcome["damage"] is not None:
                damaged[step] = outcome["damage"]
                continue
            restored, failure = None, None
            try:
                restored = self._read(step, like)
            except CheckpointError as error:
                failure = error
            if any_process("checkpoint read", failure is not None):
                # Files that are what was saved are not damaged, whatever the reason is.
                intact = outcome["verified"] or (failure is not None and not isinstance(failure, storage.UnreadableError))
                if any_process("checkpoint is intact", intact):
                    raise failure or CheckpointError(f"Another host could not read the checkpoint {self.path(step)}.")
                damaged[step] = str(failure)
                continue
            assert restored is not None
            damaged |= dict(run_on_main("metrics verified", functools.partial(self._damaged_metrics, step)))
            self._set_aside(damaged, step)
            return step, *restored
        newest = max(damaged)
        raise CheckpointError(
            f"No checkpoint in {self.directory} can be used. The newest, {self.path(newest)}, is damaged: "
            f"{damaged[newest]}. Nothing was changed. Move the directory away to start again from step 0."
        )

    def wait(self) -> None:
        """Waits until what was given to :meth:`save` is on disk.

        Raises:
            CheckpointError: it cannot be written, for instance because the disk is full.
        """
        if self._opened is not None:
            with self._named_failures():
                self._opened.wait_until_finished()
                if self._saving is not None and is_main():
                    add_late_checksums(self.path(self._saving))
                self._saving = None

    def close(self) -> None:
        """Waits for the last save and frees the threads. A failure of a save is for :meth:`wait` to raise."""
        if self._opened is not None:
            with contextlib.suppress(Exception):
                self._opened.close()

    def _verified(self, step: int) -> dict[str, Any]:
        """The outcome of verifying the checkpoint of ``step``, as JSON values for the other processes."""
        outcome: dict[str, Any] = {"verified": False, "damage": None, "error": None}
        try:
            outcome["verified"] = verify(self.path(step))
        except DamageError as error:
            outcome["damage"] = one_line(str(error))
        except CheckpointError as error:
            outcome["error"] = one_line(str(error))
        return outcome

    def _damaged_metrics(self, newest: int) -> list[tuple[int, str]]:
        """Checkpoints before ``newest`` whose metrics, which decide what is kept, are damaged, and the damage."""
        damaged = []
        for step in saved_steps(self._workdir):
            try:
                if step < newest:
                    read_metric(self.path(step), self._best_metric)
            except DamageError as error:
                damaged.append((step, one_line(str(error))))
        return damaged

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
        arrays, progress = storage.read(self.path(step), _as_dict(like))
        if progress.pop("format", 1) != _FORMAT:
            raise CheckpointError(
                f"The checkpoint {self.path(step)} was saved by an older version of gw_jax. Finish that run with the "
                "version in its config.json, or give another --workdir."
            )
        try:
            state, position = TrainState(**arrays), Progress(**progress)
        except TypeError as error:
            raise storage.UnreadableError(
                f"The checkpoint {self.path(step)} has other fields than expected ({error})."
            ) from error
        if int(state.step) != step:
            raise CheckpointError(
                f"{self.path(step)} holds a checkpoint of step {int(state.step)}, so it was copied or renamed. Rename it "
                f"to {int(state.step)}, or move it out of the work directory."
            )
        return state, position

    def _set_aside(self, damaged: dict[int, str], step: int) -> None:
        """Moves the checkpoints of ``damaged`` away, and says why and from which ``step`` the run resumes."""
        for number, reason in damaged.items():
            aside = self.directory / f"damaged-{number}"
            if is_main():
                shutil.rmtree(aside, ignore_errors=True)
                print(
                    f"warning: The checkpoint {self.path(number)} is damaged: {reason}. It was moved to {aside}; the run "
                    f"resumes from step {step}.",
                    file=sys.stderr,
                )
            self._rename(self.path(number), aside)

    def _newest_first(self) -> list[int]:
        return saved_steps(self._workdir)[::-1]

    def _rename(self, old: pathlib.Path, new: pathlib.Path) -> None:
        """Renames a checkpoint, in process 0, and tells the manager of every process."""
        run_on_main(f"{new.name} renamed", lambda: rename(old, new))
        if self._opened is not None:
            self._opened.reload()

    def _add_checksums(self) -> None:
        if self._saving is None or not is_main():
            return
        for path in self.directory.glob(f"{self._saving}.*tmp*"):
            write_checksums(path)

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        """Saving continues in the background, and what failed there is raised by the next call."""
        try:
            yield
        except Exception as error:  # Orbax's own errors are not documented.
            if not self.directory.is_dir():
                raise CheckpointError(
                    f"The directory {self.directory} was removed while the run used it, and its checkpoints with it."
                ) from error
            steps = saved_steps(self._workdir)
            rest = f"The checkpoint of step {max(steps)} is complete" if steps else "Nothing was saved before"
            raise CheckpointError(
                f"A checkpoint cannot be written to {self.directory} ({type(error).__name__}: "
                f"{one_line(str(error), 300)}). Is the disk full? {rest}; make room, and the same command resumes."
            ) from error


def _as_dict(state: TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}
