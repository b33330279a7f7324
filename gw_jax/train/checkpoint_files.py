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

    What a killed save left is removed: it takes the room of the next one. Call it while the work directory is locked.

    Raises:
        CheckpointError: ``directory`` is a file, or something in it cannot be renamed.
    """
    if not directory.is_dir():
        if directory.exists():
            raise CheckpointError(f"{directory} is a file; checkpoints need that place. Move it away.")
        return
    for path in directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in sorted(directory.glob(f"{REPLACED}*")):
        final = directory / path.name.removeprefix(REPLACED)
        if _is_checkpoint(final):
            shutil.rmtree(path, ignore_errors=True)
        else:
            rename(path, final)
    for path in sorted(directory.iterdir()):
        if path.name.isdecimal() and not _is_checkpoint(path):
            aside = path.with_name(f"not-a-checkpoint-{path.name}")
            print(f"warning: {path} is no checkpoint; it was moved to {aside}.", file=sys.stderr)
            rename(path, aside)


def rename(old: pathlib.Path, new: pathlib.Path) -> None:
    """Renames a checkpoint.

    Raises:
        CheckpointError: the file system refuses.
    """
    try:
        old.rename(new)
    except OSError as error:
        raise CheckpointError(f"{old} cannot be renamed to {new.name}: {error.strerror or error}.") from error


def read_metric(checkpoint: pathlib.Path, name: str) -> float | None:
    """The metric ``name`` of the evaluation at the step of ``checkpoint``, or None if it was saved without one.

    Raises:
        DamageError: its file is not what was saved.
        CheckpointError: its file cannot be read.
    """
    file = "metrics/metrics"
    content = read_verified(checkpoint, file)
    try:
        return None if content is None else float(json.loads(content)[name])
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{checkpoint / file} is damaged ({type(error).__name__})") from error


def _is_checkpoint(path: pathlib.Path) -> bool:
    return path.name.isdecimal() and all((path / item).is_dir() for item in ITEMS)
