"""The lock of a work directory: one training run at a time writes into it."""

import contextlib
import errno
import json
import os
import pathlib
import platform
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gw_jax.errors import ConfigError

try:
    import fcntl
except ImportError:  # Not on Windows; the heartbeat alone decides there.
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock.json"
# The holder writes a new heartbeat this often, in seconds; without one for STALE_AFTER it counts as dead.
HEARTBEAT_EVERY = 5.0
STALE_AFTER = 30.0
# Errors of file systems that have no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class WorkdirLock:
    """While entered, this process is the only one that trains in ``workdir``, which is created if it does not exist.

    Two locks work together, both in ``workdir/lock.json``:

    - ``flock``, which the system releases when the process ends, however it ends. It decides on one machine, and on network
      file systems that pass it to the server (NFS does).
    - The file's content: machine, process and a heartbeat. It decides between machines whose file system keeps ``flock`` to
      itself or has none. A heartbeat of another machine that does not change for 30 seconds is that of a dead process. So a
      run that was killed on another machine delays its successor by at most that; one that ended by itself does not.

    The heartbeat is compared with itself, never with this machine's clock. The file stays; an unlocked one is empty.
    Evaluation and export only read checkpoints, so they do not lock.

    Raises:
        ConfigError: another process holds the lock, or the directory cannot be written.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        heartbeat_every: float = HEARTBEAT_EVERY,
        stale_after: float = STALE_AFTER,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._workdir, self._path = workdir, workdir / LOCK_FILE
        self._heartbeat_every, self._stale_after, self._sleep = heartbeat_every, stale_after, sleep
        self._file: int | None = None
        self._beats = 0
        self._owner = {"machine": _machine(), "host": platform.node(), "pid": os.getpid(), "nonce": os.urandom(8).hex()}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "WorkdirLock":
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._acquire(self._file)
            except BaseException:
                os.close(self._file)
                self._file = None
                raise
        except OSError as error:
            raise ConfigError(
                f"The work directory {self._workdir} cannot be written: {error}. Give another --workdir."
            ) from error
        self._thread = threading.Thread(target=self._keep_alive, name="workdir lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None or self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        # Where the directory was removed or its disk is full, the lock is still released.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file = None

    def _acquire(self, file: int) -> None:
        locks = _flock(file)
        holder = _read(file)
        if locks is False:
            raise self._refusal(holder)
        if holder is None or (locks and holder.get("machine") == self._owner["machine"]):
            # Nobody, or a process of this machine that has ended: the system released its lock.
            pass
        elif self._is_alive(file, holder):
            raise self._refusal(holder)
        self._write(file)
        if locks is None:
            # Two that found the file free at once: the last to write has it.
            self._sleep(2 * self._heartbeat_every)
            last = _read(file)
            if last is None or last.get("nonce") != self._owner["nonce"]:
                raise self._refusal(last)

    def _is_alive(self, file: int, holder: dict[str, Any]) -> bool:
        """Whether the heartbeat of ``holder``, a process on another machine, changes."""
        print(
            f"{self._path} names process {holder.get('pid')} on {holder.get('host')}; waiting {self._stale_after:.0f} s "
            "for a sign of life from it.",
            file=sys.stderr,
        )
        waited = 0.0
        while waited < self._stale_after:
            self._sleep(self._heartbeat_every / 2)
            waited += self._heartbeat_every / 2
            now = _read(file)
            if now is None:
                return False
            if now != holder:
                return True
        return False

    def _refusal(self, holder: dict[str, Any] | None) -> ConfigError:
        who = f" (process {holder.get('pid')} on {holder.get('host')})" if holder else ""
        return ConfigError(
            f"The work directory {self._workdir} is in use by another run{who}. Wait for it to end or stop it, or give "
            "another --workdir."
        )

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._heartbeat_every):
            # A disk that is full or away for a while must not end the run here.
            with contextlib.suppress(OSError):
                assert self._file is not None
                self._write(self._file)

    def _write(self, file: int) -> None:
        self._beats += 1
        text = json.dumps({**self._owner, "heartbeat": self._beats}) + "\n"
        # In place and of a length that does not shrink, so that no reader finds the file empty.
        os.pwrite(file, text.encode(), 0)
        os.ftruncate(file, len(text.encode()))
        os.fsync(file)


def _flock(file: int) -> bool | None:
    """Whether this process holds the file's lock now; None where the file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _read(file: int) -> dict[str, Any] | None:
    """The content of the lock file; None if it is empty, or half written by a process that died."""
    try:
        content = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _machine() -> str:
    """An identifier of this machine since its last boot; containers on one machine share it."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
