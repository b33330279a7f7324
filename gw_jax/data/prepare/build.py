"""Preparation of a TFDS data set by one process at a time, whole or not at all."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from gw_jax.errors import DataError, one_line


def prepare(builder: Any, manual_dir: str | None = None) -> None:
    """Downloads (where needed) and prepares the set of ``builder``; an interrupted attempt leaves nothing that counts.

    Args:
        builder: from :func:`gw_jax.data.datasets.load_builder`.
        manual_dir: where files are that must be downloaded by hand.

    Raises:
        DataError: the set's own builder failed, for instance because it needs TensorFlow.
    """
    print(f"Preparing the data set {builder.info.full_name} in {builder.data_path} ...", file=sys.stderr)
    try:
        if manual_dir is None:
            builder.download_and_prepare()
        else:
            import tensorflow_datasets as tfds

            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except ImportError as error:
        raise DataError(
            f"Preparing {builder.info.full_name} needs the package {error.name!r}. Install it (for TensorFlow the extra: "
            "pip install 'gw_jax[prepare]'; only preparing needs it, training does not) and run the command again."
        ) from error
    except Exception as error:  # Builders fail in their own ways: no network, a missing file, a full disk.
        reason = one_line(f"{type(error).__name__}: {error}")
        raise DataError(f"Preparing {builder.info.full_name} in {builder.data_path} failed. {reason}") from error


@contextlib.contextmanager
def preparation_lock(builder: Any, *, wait: bool) -> Iterator[None]:
    """Holds the only right to prepare the set of ``builder``, and removes what earlier attempts left unfinished.

    The lock ends with the process that holds it. Buckets have none.

    Args:
        builder: from :func:`gw_jax.data.datasets.load_builder`.
        wait: whether to wait for another process that prepares the set; the set may be there afterwards.

    Raises:
        DataError: another process holds the lock and ``wait`` is False, or the directory cannot be written.
    """
    from etils import epath

    directory = epath.Path(builder.data_path)
    if "://" in os.fspath(directory) or sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = (directory.parent / f".{directory.name}.lock").open("w")
    except OSError as error:
        raise DataError(
            f"The data set {builder.info.full_name} cannot be prepared in {directory.parent}: {error.strerror or error}. "
            "Give another data directory, in which this user may write."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise DataError(f"Another command is preparing {directory} right now. Wait for it, or stop it.") from error
            print(f"Waiting for another process that is preparing {directory} ...", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            print(
                f"warning: {directory.parent} has no file locks ({error}): prepare from one process only.", file=sys.stderr
            )
        # As TFDS names them today, and as it did before.
        for pattern in (f"incomplete.*_{directory.name}", f"{directory.name}.incomplete*"):
            for leftover in directory.parent.glob(pattern):
                print(f"Removing {leftover}, which a stopped command left unfinished.", file=sys.stderr)
                leftover.rmtree()
        yield


def check_free_space(data_dir: str, needed: float, *, copies: bool = True) -> None:
    """Raises DataError if the disk of ``data_dir`` (a local path) has less than ``needed`` bytes left.

    ``copies`` says whether half of them are those of temporary files.
    """
    from etils import epath

    directory = epath.Path(data_dir)
    if "://" in data_dir:
        return
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < needed:
        temporary = " (half of it only while it runs)" if copies else ""
        raise DataError(
            f"Preparing needs about {needed / 1e9:.0f} GB in {data_dir}{temporary}, and "
            f"{free / 1e9:.0f} GB are free. Give a --data_dir on a larger disk."
        )
