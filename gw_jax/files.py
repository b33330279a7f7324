"""Files and directories that are written whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes ``text`` to ``path`` so that a reader, or a crash, sees the old file or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of a temporary file beside ``path``, which takes its place at the end, or vanishes on an error."""
    # Not tempfile, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary directory beside ``path``, which becomes it at the end, or vanishes on an error.

    Raises:
        FileExistsError: ``path`` exists.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _flush(path: pathlib.Path) -> None:
    """Waits until the file's bytes are on the disk, so that no crash leaves its name without them."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
