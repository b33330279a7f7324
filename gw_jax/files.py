"""Files and directories that are written whole or not at all."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

from gw_jax.errors import CheckpointError, one_line


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes ``text`` to ``path`` so that a reader, or a crash, sees the old file or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: pathlib.Path, *, overwrite: bool = True) -> Iterator[pathlib.Path]:
    """Yields the path of an empty temporary file beside ``path``, which replaces it at the end, or vanishes on an error.

    Raises:
        FileExistsError: with ``overwrite=False``, if there is something at ``path`` in the end.
    """
    temporary = _temporary_name(path)
    # O_EXCL: another user's file or link of that name is an error. Not tempfile, whose files only their owner can read.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield temporary
        _flush(temporary)
        if overwrite:
            temporary.replace(path)
        else:
            _move_to_new(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary directory beside ``path``, which becomes ``path`` at the end, or vanishes on an error.

    On an error the parents that were made for it vanish, too, unless something else is in them.

    Raises:
        FileExistsError: ``path`` exists.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already")
    with _parents(path):
        temporary = _temporary_name(path)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """As :func:`new_directory`, for a file: it never replaces one that exists.

    Raises:
        FileExistsError: ``path`` exists.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already")
    with _parents(path), replacing(path, overwrite=False) as temporary:
        yield temporary


def require_new(path: pathlib.Path) -> None:
    """Raises CheckpointError if there is something at ``path``, or if it is no valid path."""
    try:
        exists = os.path.lexists(path)
        if not exists:
            # lexists returns False for a name that is too long.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{one_line(str(path), 200)} cannot be written: {_reason(error)}. Give another name."
        ) from error
    if exists:
        raise CheckpointError(f"{path} exists already; it was not changed. Give another name, or move it away first.")


def write_error(path: pathlib.Path, error: Exception) -> CheckpointError:
    """The error for a failed write of ``path`` that left nothing there."""
    return CheckpointError(f"{one_line(str(path), 200)} cannot be written: {_reason(error)}. Nothing was left there.")


def _reason(error: Exception) -> str:
    """The system's words for ``error``, without a path, which may be the temporary one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)


def _temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A name beside ``path`` that nobody can foresee, no longer than the file system allows."""
    return path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def _parents(path: pathlib.Path) -> Iterator[None]:
    """Makes the parents of ``path``, and on an error removes those that it made and that are empty."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


def _move_to_new(source: pathlib.Path, path: pathlib.Path) -> None:
    try:
        # A link fails where the name exists, a rename would replace it.
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # A file system without links.
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists already") from None
        source.replace(path)
    else:
        source.unlink()


def _flush(path: pathlib.Path) -> None:
    """Waits until the file's bytes are on the disk, so that no crash leaves its name without them."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
