"""The directory in which the checkpoints of a run are: one directory per step, complete or with another name."""

import json
import pathlib
import shutil
import sys

from gw_jax.errors import CheckpointError
from gw_jax.train.checksums import DamageError, read_verified, with_retries

DIRECTORY = "checkpoints"
# The parts of a checkpoint, which are directories in it.
ITEMS = ("state", "progress")
# Name of a checkpoint that the one being saved at the same step replaces, until that is complete.
REPLACED = "replaced-"


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints in ``workdir``, in order. Anything else in the directory is no checkpoint."""
    directory = workdir / DIRECTORY

    def steps() -> list[int]:
        if not directory.is_dir():
            return []
        return sorted(int(path.name) for path in directory.iterdir() if _is_checkpoint(path))

    return with_retries(steps, f"{directory} cannot be read")


def tidy(directory: pathlib.Path) -> None:
    """Restores a checkpoint whose replacement was never completed, and moves away what only looks like one.

    Raises:
        CheckpointError: ``directory`` is a file.
    """
    if not directory.is_dir():
        if directory.exists():
            raise CheckpointError(f"{directory} is a file; checkpoints need that place. Move it away.")
        return
    for path in sorted(directory.glob(f"{REPLACED}*")):
        final = directory / path.name.removeprefix(REPLACED)
        if _is_checkpoint(final):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(final)
    for path in sorted(directory.iterdir()):
        if path.name.isdecimal() and not _is_checkpoint(path):
            aside = path.with_name(f"not-a-checkpoint-{path.name}")
            print(f"warning: {path} is no checkpoint; it was moved to {aside}.", file=sys.stderr)
            path.rename(aside)


def read_metric(checkpoint: pathlib.Path, name: str) -> float | None:
    """The metric ``name`` of the evaluation at the step of ``checkpoint``, or None if it was saved without one.

    Raises:
        DamageError: its file is not what was saved.
        CheckpointError: its file cannot be read.
    """
    path = checkpoint / "metrics" / "metrics"
    if not path.exists():
        return None
    try:
        return float(json.loads(read_verified(checkpoint, "metrics/metrics"))[name])
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} is damaged ({type(error).__name__})") from error


def _is_checkpoint(path: pathlib.Path) -> bool:
    return path.name.isdecimal() and all((path / item).is_dir() for item in ITEMS)
