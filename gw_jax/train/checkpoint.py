"""Checkpoints: the state, the position in the data and the metrics that wait to be written, kept by Orbax.

The only file that knows Orbax. A checkpoint is complete or absent: it is written into a temporary directory, which is
renamed last.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gw_jax.errors import CheckpointError
from gw_jax.train.config import CheckpointConfig
from gw_jax.train.distributed import is_main, wait_for_everyone
from gw_jax.train.state import TrainState

DIRECTORY = "checkpoints"
BEST_METRIC = "eval/top1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run must know to go on, beside the state.

    Attributes:
        data: position of the training data, as :meth:`TrainBatches.get_state` returns it.
        pending: metrics of the steps since the last line of ``metrics.jsonl``, ``[[loss, top1], ...]``.
        evaluated: whether the evaluation that is due at this step, if any, has been done.
    """

    data: dict[str, Any]
    pending: list[list[float]]
    evaluated: bool


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a complete checkpoint is in ``workdir``."""
    directory = workdir / DIRECTORY
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


class Checkpoints:
    """The checkpoints of one work directory. Saving goes on in the background; :meth:`close` waits for it."""

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig):
        self.directory = (workdir / DIRECTORY).absolute()
        policies: list[Any] = [checkpoint_managers.LatestN(config.keep_last)]
        if config.keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=_top1, n=config.keep_best, reverse=False, keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=_top1,
            best_mode="max",
            create=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "progress"))

    def last_step(self) -> int | None:
        """The newest step that is saved."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The saved step with the highest top-1; the newest where none has been evaluated."""
        best = self._manager.best_step()
        return self.last_step() if best is None else best

    def path(self, step: int) -> pathlib.Path:
        """Where the checkpoint of ``step`` is."""
        return self.directory / str(step)

    def save(self, state: TrainState, progress: Progress, metrics: dict[str, float] | None = None) -> pathlib.Path:
        """Starts to save; ``metrics`` with "eval/top1" let the checkpoint compete for the best."""
        step = int(state.step)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_dict(state)), progress=ocp.args.JsonSave(dataclasses.asdict(progress))
        )
        if step in self._manager.all_steps():
            # A stop during the evaluation saved this step, before its metrics were known.
            self.wait()
            self._manager.delete(step)
        with self._named_failures():
            self._manager.save(step, args=args, metrics=metrics, force=True)
        return self.path(step)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
        """Reads the checkpoint of ``step`` with the shapes, types and shardings of ``like``.

        Raises:
            CheckpointError: it cannot be read, or belongs to another network.
        """
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _as_dict(like))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
            return TrainState(**restored.state), Progress(**restored.progress)
        except Exception as error:  # Whatever the storage library raises for damaged files, which is not documented.
            older = [other for other in self._manager.all_steps() if other < step]
            remedy = f"go on from step {max(older)}" if older else "start again from step 0"
            raise CheckpointError(
                f"The checkpoint {self.path(step)} cannot be read; it is damaged or belongs to another network "
                f"({type(error).__name__}: {_first_line(error)}). Nothing was changed. "
                f"Move that directory away to {remedy}."
            ) from error

    def restore_newest(self, like: TrainState) -> tuple[int, TrainState, Progress]:
        """Reads the newest checkpoint; where it is damaged, sets it aside, says so, and reads the one before.

        Raises:
            CheckpointError: none can be read. None is set aside then: more likely the run differs than all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        errors: list[CheckpointError] = []
        for step in steps:
            try:
                state, progress = self.restore(step, like)
            except CheckpointError as error:
                errors.append(error)
                continue
            for damaged, reason in zip(steps, errors, strict=False):
                aside = self.directory / f"damaged-{damaged}"
                if is_main():
                    print(f"warning: {reason} It was moved to {aside}; the run goes on from step {step}.", file=sys.stderr)
                    shutil.rmtree(aside, ignore_errors=True)
                    self.path(damaged).rename(aside)
            if errors:
                wait_for_everyone("damaged checkpoints set aside")
                self._manager.reload()
            return step, state, progress
        raise errors[0]

    def wait(self) -> None:
        """Waits until what was given to :meth:`save` is on disk.

        Raises:
            CheckpointError: it cannot be written, for instance because the disk is full.
        """
        with self._named_failures():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        """Saving goes on in the background, and what went wrong there comes up at the next call."""
        try:
            yield
        except Exception as error:  # The storage library's own errors are not documented.
            steps = self._manager.all_steps()
            rest = f"The checkpoint of step {max(steps)} is whole" if steps else "Nothing was saved before"
            raise CheckpointError(
                f"A checkpoint cannot be written to {self.directory} ({type(error).__name__}: {_first_line(error)}). Is "
                "the disk "
                f"full? {rest}; make room, and the same command goes on."
            ) from error

    def close(self) -> None:
        """Waits for the last save and frees the threads. What went wrong in a save is for :meth:`wait` to say."""
        with contextlib.suppress(Exception):
            self._manager.close()


def _top1(metrics: dict[str, float]) -> float:
    return metrics[BEST_METRIC]


def _as_dict(state: TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
