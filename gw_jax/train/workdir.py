"""The work directory of a run: which run owns it, and under which changes of the configuration it may be used.

``config.json`` holds the configuration of the run that owns the directory. Training compares every field with it;
evaluation and export start from it, and compare only what the command line gives.
"""

import contextlib
import copy
import importlib.metadata
import json
import pathlib
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any, TypeVar

import jax

from gw_jax._version import __version__
from gw_jax.errors import CheckpointError, ConfigError, shown
from gw_jax.files import write_atomically
from gw_jax.train.checkpoint import saved_steps
from gw_jax.train.config import TrainConfig
from gw_jax.train.config_fields import flatten, set_field
from gw_jax.train.state import TrainState

CONFIG_FILE = "config.json"

_DIRECTORIES = ("checkpoints", "tensorboard", "profile")
_FILES = (CONFIG_FILE, "metrics.jsonl", "evaluation.json", "curves.png")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:/")

# Bytes of the files of a checkpoint beside its arrays, and of the metrics until the next one.
_CHECKPOINT_OVERHEAD = 1 << 18

Config = TypeVar("Config", bound=TrainConfig)


def may_differ(name: str, config: TrainConfig) -> bool:
    """Whether the field ``name`` may differ from that of the run in the work directory when ``config`` is started."""
    names = config.MAY_CHANGE + (config.MAY_DIFFER_IN_EVALUATION if config.mode == "evaluate" else ())
    return any(name.startswith(other) if other.endswith(".") else name == other for other in names)


def check_local_path(path: str | pathlib.Path, what: str) -> pathlib.Path:
    """``path`` with ``~`` expanded, for the directory that ``what`` ("--workdir") gives.

    Raises:
        ConfigError: it is empty, or a URL such as ``gs://bucket/run``, which would become a local directory "gs:".
    """
    if not str(path):
        raise ConfigError(f"{what} is empty; give a directory.")
    if _URL.match(str(path)):
        raise ConfigError(
            f"{what}={shown(str(path))} is a URL, and only local paths are supported. Mount the bucket (docs/pods.md says "
            "how) and give the path where it is mounted."
        )
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what}={shown(str(path))} cannot be used: {error}.") from error


def stored_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The fields of the run that owns ``workdir``, by name (``{"optimizer.momentum": 0.9, ...}``); None for no run.

    Raises:
        ConfigError: the directory cannot be a work directory, or its ``config.json`` cannot be read or is lost.
    """
    _check_layout(workdir)
    path = workdir / CONFIG_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        _check_no_orphans(workdir)
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    try:
        stored = json.loads(text)["config"]
        if not isinstance(stored, dict):
            raise TypeError(f"its config is a {type(stored).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error
    return stored


def _unreadable(path: pathlib.Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read as the configuration of a run ({type(error).__name__}: {error}). Restore the file, or give "
        "another --workdir."
    )


def _check_layout(workdir: pathlib.Path) -> None:
    try:
        if workdir.exists() and not workdir.is_dir():
            raise ConfigError(f"The work directory {workdir} is a file. Give another --workdir.")
        for name in _DIRECTORIES:
            if (path := workdir / name).exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file; a run needs a directory of that name. Remove it.")
        for name in _FILES:
            if (path := workdir / name).is_dir():
                raise ConfigError(f"{path} is a directory; a run needs a file of that name. Remove it.")
    except OSError as error:
        raise ConfigError(f"The work directory {workdir} cannot be used: {error}. Give another --workdir.") from error


def _check_no_orphans(workdir: pathlib.Path) -> None:
    """Refuses checkpoints without a configuration: they would be resumed under any."""
    if saved_steps(workdir):
        raise ConfigError(
            f"{workdir} holds checkpoints but no {CONFIG_FILE}, so nobody can say of which run. Restore the file, or give "
            "another --workdir."
        )


def check_given(workdir: pathlib.Path, stored: Mapping[str, Any], given: Mapping[str, Any], config: TrainConfig) -> None:
    """Compares the ``given`` fields with those ``stored`` in ``workdir``, except those that ``config`` lets differ.

    Args:
        workdir: the work directory, for the message.
        stored: the fields of the run that owns it.
        given: the fields to compare.
        config: gives the names of the fields that may differ, and the mode.

    Raises:
        ConfigError: they describe another run; the message lists the fields that differ.
    """
    differences = [
        f"config.{name} is {shown(stored[name]) if name in stored else 'missing'} there and {shown(given[name])} now"
        for name in sorted(given)
        if not may_differ(name, config) and (name not in stored or _plain(stored[name]) != _plain(given[name]))
    ]
    if differences:
        more = f" and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise ConfigError(
            f"The work directory {workdir} holds a run with another configuration: {'; '.join(differences[:8])}{more}. "
            "Give another --workdir for the new run, or the old values to resume the old one."
        )


def check_same_run(workdir: pathlib.Path, config: TrainConfig) -> bool:
    """Whether ``workdir`` holds a run; it must be the one that all fields of ``config`` describe.

    Raises:
        ConfigError: it holds another one, or cannot be a work directory.
    """
    stored = stored_config(workdir)
    if stored is None:
        return False
    # A field that is newer than the run had its default then.
    stored = flatten(type(config)()) | stored
    given = flatten(config)
    missing = dict.fromkeys(stored.keys() - given.keys())
    check_given(workdir, stored, given | missing, config)
    return True


def config_from_stored(
    workdir: pathlib.Path, stored: Mapping[str, Any], config: Config, given: Set[str] | None = None
) -> Config:
    """The configuration for evaluating or exporting the run that owns ``workdir``.

    Args:
        workdir: the work directory, for messages.
        stored: the fields of that run, from :func:`stored_config`.
        config: the configuration of the command line, with ``config.mode``.
        given: names of the fields that the command line set. None means all: a caller from Python.

    Returns:
        A copy of ``config`` with the ``stored`` fields, except "mode" and those that are ``given``.

    Raises:
        ConfigError: a given field differs from the stored one and may not in this mode, or a stored field does not fit
            ``config``, which is then of another task or of another version.
    """
    fields = flatten(config)
    if given is None:
        given = frozenset(fields)
    # A field that is newer than the run had its default then.
    stored = flatten(type(config)()) | dict(stored)
    check_given(workdir, stored, {name: fields[name] for name in given}, config)
    merged = copy.deepcopy(config)
    for name, value in stored.items():
        if name == "mode" or name in given:
            continue
        if name not in fields:
            raise ConfigError(
                f"The run in {workdir} has a field config.{name}, which a {type(config).__name__} does not have. Give the "
                "--config with which it was trained, and use the same version of gw_jax."
            )
        set_field(merged, name, value)
    return merged


def claim_workdir(workdir: pathlib.Path, config: TrainConfig) -> None:
    """Writes ``config.json`` into a new ``workdir``, or checks that the one that is there is the same run.

    Call it in one process, which holds the :class:`~gw_jax.train.workdir_lock.WorkdirLock`.

    Raises:
        ConfigError: ``workdir`` cannot be written, or holds a run with another configuration.
    """
    check_same_run(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        content = {"config": flatten(config), "versions": versions()}
        write_atomically(workdir / CONFIG_FILE, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"The work directory {workdir} cannot be written: {error}. Give another --workdir.") from error


def versions() -> dict[str, str]:
    """The versions that a run's numbers may depend on."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    return {
        "python": platform.python_version(),
        "gw_jax": __version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }


def check_disk_space(workdir: pathlib.Path, state: TrainState) -> None:
    """Checks that two checkpoints of ``state`` fit on the disk: the new one and the old one, which is removed after it.

    Raises:
        ConfigError: they do not.
    """
    free, needed = shutil.disk_usage(workdir).free, 2 * _size(state)
    if free < needed:
        raise ConfigError(
            f"The work directory {workdir} is on a disk with {free / 1e6:.0f} MB free; two checkpoints of this run take "
            f"{needed / 1e6:.0f} MB. Make room, or give another --workdir."
        )


def check_room_to_save(workdir: pathlib.Path, state: TrainState) -> None:
    """Checks that one more checkpoint of ``state`` fits on the disk, before half of it is written.

    Raises:
        CheckpointError: it does not.
    """
    try:
        free, needed = shutil.disk_usage(workdir).free, _size(state) + _CHECKPOINT_OVERHEAD
    except FileNotFoundError as error:
        raise CheckpointError(f"The work directory {workdir} was removed while the run used it.") from error
    if free < needed:
        raise CheckpointError(
            f"The disk of {workdir} is full: a checkpoint takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free. "
            "Make room; the same command then resumes from the last checkpoint."
        )


def _size(state: TrainState) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@contextlib.contextmanager
def warn_unwritable(path: pathlib.Path) -> Iterator[None]:
    """Turns an OSError (a read-only directory, a full disk) into a warning, for a file that repeats what was printed."""
    try:
        yield
    except OSError as error:
        print(f"warning: {path} cannot be written: {error.strerror or error}.", file=sys.stderr)


def write_or_warn(path: pathlib.Path, text: str) -> None:
    """Writes ``text`` to ``path``; where that is impossible, a warning says so. Print the result first."""
    with warn_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


def _plain(value: Any) -> Any:
    """JSON has lists for tuples."""
    return list(value) if isinstance(value, tuple) else value
