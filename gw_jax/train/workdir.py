"""The work directory of a run: whose it is."""

import importlib.metadata
import json
import pathlib
import platform
import shutil
from typing import Any

import jax

from gw_jax._version import __version__
from gw_jax.errors import ConfigError
from gw_jax.files import write_atomically
from gw_jax.train.config import TrainConfig
from gw_jax.train.config_fields import flatten

CONFIG_FILE = "config.json"

# Fields that may change between the starts of one run: they alter no result.
FREE_FIELDS = (
    "mode",
    "data.data_dir",
    "data.num_threads",
    "data.num_workers",
    "data.max_broken",
    "checkpoint.",
    "log.",
)
# Those that may differ from the run's when it is only evaluated: they say on what.
EVALUATION_FIELDS = ("data.eval_", "data.name", "data.allow_partial", "dtype")


def claim_workdir(workdir: pathlib.Path, config: TrainConfig) -> None:
    """Writes ``config.json`` into a new ``workdir``, or checks that the one that is there is the same run.

    Raises:
        ConfigError: ``workdir`` is a file, cannot be written, or holds a run with another configuration.
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


def check_room(workdir: pathlib.Path, state: Any) -> None:
    """Checks that two checkpoints of ``state`` fit on the disk: the new one and the old one, which is removed after it.

    Raises:
        ConfigError: they do not.
    """
    needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise ConfigError(
            f"The work directory {workdir} is on a disk with {free / 1e6:.0f} MB free; two checkpoints of this run take "
            f"{needed / 1e6:.0f} MB. Make room, or give another --workdir."
        )


def check_same_run(workdir: pathlib.Path, config: TrainConfig) -> bool:
    """Whether ``workdir`` holds a run; it must be the one that ``config`` describes.

    Raises:
        ConfigError: it holds another one; the message lists the fields that differ.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"The work directory {workdir} is a file. Give another --workdir.")
    path = workdir / CONFIG_FILE
    if not path.exists():
        return False
    try:
        stored: dict[str, Any] = json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read as the configuration of a run ({error!r}). Give another --workdir, or remove the file "
            "if you know that the run is the same."
        ) from error
    # A field that is newer than the run had its default then.
    stored = flatten(TrainConfig()) | stored
    given = flatten(config)
    free = FREE_FIELDS + (EVALUATION_FIELDS if config.mode == "evaluate" else ())
    differences = [
        f"config.{name} is {stored.get(name)!r} there and {given.get(name)!r} now"
        for name in sorted({*stored, *given})
        if not name.startswith(free) and stored.get(name) != given.get(name)
    ]
    if differences:
        raise ConfigError(
            f"The work directory {workdir} holds a run with another configuration: {'; '.join(differences)}. Give "
            "another --workdir for the new run, or the old values to go on with the old one."
        )
    return True


def write_or_warn(path: pathlib.Path, text: str) -> None:
    """Writes a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
