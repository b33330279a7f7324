"""Checksums of the files of a checkpoint, written when it is complete and verified before it is restored."""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

from gw_jax.errors import CheckpointError
from gw_jax.files import write_atomically

FILE = "checksums.json"
# A read that fails on a network file system is tried again after these pauses, in seconds.
RETRY_PAUSES = (0.2, 1.0, 3.0)

# Files that the storage library writes when a checkpoint gets its final name. Their checksums are added after that.
_LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")

T = TypeVar("T")


class DamageError(CheckpointError):
    """Files of a checkpoint are not those that were saved."""


def write_checksums(directory: pathlib.Path) -> None:
    """Writes ``checksums.json`` into ``directory``, which has its temporary name: the SHA-256 of its files.

    It holds nothing else, since nothing would tell that it is damaged.
    """
    write_atomically(directory / FILE, json.dumps({"sha256": _digests(directory, late=False)}, indent=1) + "\n")


def add_late_checksums(directory: pathlib.Path) -> None:
    """Adds the files that were written when the checkpoint got its final name."""
    path = directory / FILE
    early = json.loads(path.read_text())["sha256"]
    late = {name: _digest(directory / name) for name in _LATE if (directory / name).is_file()}
    write_atomically(path, json.dumps({"sha256": {**early, **late}}, indent=1) + "\n")


def verify(directory: pathlib.Path) -> bool:
    """Compares the files below ``directory`` with the checksums that were written when it was saved.

    Returns:
        False if there are no checksums, as in a checkpoint of an older version.

    Raises:
        DamageError: a file differs, is missing or was added.
        CheckpointError: it cannot be read, although that was tried repeatedly.
    """
    expected = _expected(directory)
    if expected is None:
        return False
    found = with_retries(lambda: _digests(directory), f"The checkpoint {directory} cannot be read")
    if found != expected:
        # A second look: bytes can also be damaged on their way from the disk.
        found = with_retries(lambda: _digests(directory), f"The checkpoint {directory} cannot be read")
    names = {*found, *expected} - {name for name in _LATE if name not in expected}
    differing = sorted(name for name in names if found.get(name) != expected.get(name))
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise DamageError(f"{directory / differing[0]}{more} is not what was saved (SHA-256 differs)")
    return True


def read_verified(directory: pathlib.Path, name: str) -> bytes:
    """The content of the file ``name`` below ``directory``, which is compared with its checksum, if there are any.

    Raises:
        DamageError: it is not what was saved.
        CheckpointError: it cannot be read, although that was tried repeatedly.
    """
    path = directory / name
    content = with_retries(path.read_bytes, f"{path} cannot be read")
    expected = _expected(directory)
    if expected is not None and hashlib.sha256(content).hexdigest() != expected.get(name):
        raise DamageError(f"{path} is not what was saved (SHA-256 differs)")
    return content


def _expected(directory: pathlib.Path) -> dict[str, str] | None:
    """The checksums in ``directory``, by the names of the files; None if there are none."""
    path = directory / FILE
    if not with_retries(path.exists, f"{path} cannot be read"):
        return None
    try:
        return dict(json.loads(with_retries(path.read_bytes, f"{path} cannot be read"))["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} is damaged ({type(error).__name__})") from error


def with_retries(read: Callable[[], T], failure: str, pause: Callable[[float], Any] = time.sleep) -> T:
    """The result of ``read()``, which is repeated after pauses if it raises OSError.

    Raises:
        CheckpointError: it failed every time. Nothing is known to be damaged then.
    """
    for seconds in RETRY_PAUSES:
        try:
            return read()
        except OSError:
            pause(seconds)
    try:
        return read()
    except OSError as error:
        raise CheckpointError(
            f"{failure}: {error}. That was tried {len(RETRY_PAUSES) + 1} times. Nothing was changed; check the file system "
            "and repeat the command."
        ) from error


def _digests(directory: pathlib.Path, *, late: bool = True) -> dict[str, str]:
    files = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {name: _digest(path) for name, path in files.items() if name != FILE and (late or name not in _LATE)}


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
