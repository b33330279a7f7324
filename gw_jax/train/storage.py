"""Orbax, which writes and reads the arrays of checkpoints. No other file imports it."""

import pathlib
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gw_jax.errors import CheckpointError, one_line
from gw_jax.train.checkpoint_files import ITEMS
from gw_jax.train.checksums import with_retries
from gw_jax.train.config import CheckpointConfig

Manager: TypeAlias = ocp.CheckpointManager


class UnreadableError(CheckpointError):
    """Orbax could not restore a checkpoint: damage, if its files are not known to be what was saved."""


def open_manager(
    directory: pathlib.Path, config: CheckpointConfig, best_metric: str, before_rename: Callable[[], None]
) -> Manager:
    """The writer of the checkpoints in ``directory``, which removes those that are not kept.

    Args:
        directory: it is created if it does not exist. The metrics of all checkpoints in it are read at once.
        config: which checkpoints are kept.
        best_metric: the metric whose largest values are the best.
        before_rename: called when everything is written, before the checkpoint's directory gets its final name.
    """

    def metric(metrics: dict[str, float]) -> float:
        return metrics[best_metric]

    policies: list[Any] = [checkpoint_managers.LatestN(config.keep_last)]
    if config.keep_best:
        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=metric, n=config.keep_best, reverse=False, keep_checkpoints_without_metrics=False
            )
        )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=metric,
        best_mode="max",
        create=True,
        async_options=ocp.AsyncOptions(
            post_finalization_callback=before_rename,
            # Else threads wait 20 minutes for a directory that cannot be created.
            create_directories_asynchronously=False,
        ),
    )
    return ocp.CheckpointManager(directory, options=options, item_names=ITEMS)


def start_save(
    manager: Manager, step: int, state: dict[str, Any], progress: dict[str, Any], metrics: dict[str, float] | None
) -> None:
    """Copies the arrays of ``state`` and starts to write them, in the background.

    Args:
        manager: from :func:`open_manager`.
        step: number of the checkpoint.
        state: the arrays, by name.
        progress: JSON values beside them.
        metrics: of an evaluation, or None.
    """
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
    manager.save(step, args=args, metrics=metrics, force=True)


def read(path: pathlib.Path, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the state and the progress of one checkpoint.

    Args:
        path: its directory.
        like: arrays with the shapes, types and shardings that the state must have.

    Raises:
        UnreadableError: Orbax refuses the files.
        CheckpointError: they cannot be read now, or memory ran out.
    """
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())

    def restore() -> Any:
        # Not the manager, which reads the metrics of all checkpoints, and one of them may be damaged.
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(*ITEMS)) as checkpointer:
            return checkpointer.restore(path, args=args)

    try:
        restored = with_retries(restore, f"The checkpoint {path} cannot be read")
        return dict(restored.state), dict(restored.progress)
    except CheckpointError:
        raise
    except Exception as error:  # Orbax's own errors are not documented.
        out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        raise (CheckpointError if out_of_memory else UnreadableError)(
            f"The checkpoint {path} cannot be restored ({type(error).__name__}: {one_line(str(error), 300)}). It belongs "
            "to another network or version, or memory ran out. Nothing was changed."
        ) from error
