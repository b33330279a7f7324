"""Control connections between the processes of a run: their presence, their loss, and small values that all of them need.

JAX's own service ends a process by SIGABRT and a C++ stack trace when another one is lost, and after five minutes when one
never came. So the processes meet here first, over plain TCP, and watch each other as long as the run lasts::

    process 1 --- hello, heartbeats, values ---> process 0 <--- hello, heartbeats, values --- process 2

Each message is a line of JSON. Process 0 sends on what concerns all.
"""

import contextlib
import json
import os
import platform
import socket
import sys
import threading
import time
from typing import Any

from gw_jax.errors import TrainingError, one_line

_MAX_LINE = 1 << 20


class Peers:
    """The other processes of a run, from :func:`meet`."""

    def __init__(self, process_id: int, num_processes: int, timeout: float):
        self.process_id, self.num_processes, self.timeout = process_id, num_processes, timeout
        # Seconds that a process has to end by itself after a failure was reported, before it is ended.
        self.grace = min(5.0, timeout / 4)
        self.failure: str | None = None
        self.hosts = [""] * num_processes
        self.hosts[process_id] = platform.node()
        self.changed = threading.Condition()
        self.connections: dict[int, Connection] = {}
        self._departed: set[int] = set()
        self._rounds: dict[int, dict[int, tuple[str, Any]]] = {}
        self._results: dict[int, list[Any]] = {}
        self._round = 0
        self._reason: str | None = None
        self._closed = False

    # Interface of the run.

    def gather(self, name: str, value: Any, timeout: float) -> list[Any]:
        """The ``value`` of every process, in their order; JSON values. All processes must call it in the same order.

        Raises:
            TrainingError: a process is lost, has failed, is at another ``name``, or has not come within ``timeout``.
        """
        deadline = time.monotonic() + timeout
        with self.changed:
            number, self._round = self._round, self._round + 1
        if self.process_id == 0:
            self._add(0, {"gather": number, "name": name, "value": value})
        else:
            self._send(0, {"gather": number, "name": name, "value": value})
        with self.changed:
            while number not in self._results:
                if self.failure is not None:
                    raise TrainingError(self.failure)
                left = deadline - time.monotonic()
                if left <= 0:
                    missing = [self._name(i) for i in range(self.num_processes) if i not in self._rounds.get(number, {})]
                    who = f"; {', '.join(missing)} did not come" if self.process_id == 0 else ""
                    raise TrainingError(f"The processes waited {timeout:.0f} s for each other at {name!r}{who}.")
                self.changed.wait(min(left, 1.0))
            return self._results.pop(number)

    def fail(self, reason: str) -> None:
        """Reports to all others that this process has failed; they end, and this one is ended if it does not end soon."""
        self._reason = reason
        self._spread(f"{self._name(self.process_id)} has failed: {one_line(reason)}")

    def wait_for_failure(self) -> str | None:
        """The failure of another process, or None if none is reported within a moment."""
        with self.changed:
            self.changed.wait_for(lambda: self.failure is not None, self.grace)
            return self.failure

    def close(self) -> None:
        """Says goodbye: from now on no process counts this one as lost."""
        for other in list(self.connections):
            self._send(other, {"bye": True})
        self._closed = True

    # Connections.

    def _name(self, process_id: int) -> str:
        host = f" ({self.hosts[process_id]})" if self.hosts[process_id] else ""
        return f"process {process_id} of {self.num_processes}{host}"

    def _send(self, other: int, message: dict[str, Any]) -> None:
        # A connection that broke is reported where it is read.
        with contextlib.suppress(OSError):
            self.connections[other].send(message)

    def watch(self, other: int) -> None:
        """Starts the threads that read from the connection to ``other`` and keep it alive."""
        for target in (self._read, self._beat):
            threading.Thread(target=target, args=(other,), name=f"process {other}", daemon=True).start()

    def _beat(self, other: int) -> None:
        while not self._closed:
            self._send(other, {"beat": True})
            time.sleep(self.timeout / 4)

    def _read(self, other: int) -> None:
        lost = f"{self._name(other)} is lost: it was killed, or its host or network is down"
        try:
            while (message := self.connections[other].receive(self.timeout)) is not None:
                if "gather" in message:
                    self._add(other, message)
                elif "gathered" in message:
                    with self.changed:
                        self._results[message["gathered"]] = message["values"]
                        self.changed.notify_all()
                elif "failed" in message:
                    self._spread(str(message["failed"]))
                elif "bye" in message:
                    with self.changed:
                        self._departed.add(other)
                    return
        except TimeoutError:
            lost = f"{self._name(other)} is lost: it has given no sign of life for {self.timeout:.0f} s"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self._spread(lost)

    def _add(self, other: int, message: dict[str, Any]) -> None:
        """Process 0: adds a value to a round, and sends the round to all when it is complete."""
        number = message["gather"]
        with self.changed:
            values = self._rounds.setdefault(number, {})
            values[other] = (message["name"], message["value"])
            complete = len(values) == self.num_processes
        if not complete:
            return
        names = {values[i][0] for i in values}
        if len(names) > 1:
            at = ", ".join(f"{self._name(i)} at {values[i][0]!r}" for i in sorted(values))
            self._spread(f"the processes do not do the same: {at}")
            return
        everyone = [values[i][1] for i in range(self.num_processes)]
        for other in self.connections:
            self._send(other, {"gathered": number, "values": everyone})
        with self.changed:
            del self._rounds[number]
            self._results[number] = everyone
            self.changed.notify_all()

    def _spread(self, text: str) -> None:
        """Makes a failure known here and to all others."""
        with self.changed:
            if self.failure is not None or self._closed:
                return
            self.failure = text[0].upper() + text[1:]
            self.changed.notify_all()
        for other in list(self.connections):
            self._send(other, {"failed": text})
        threading.Thread(target=self._end, name="end of the run", daemon=True).start()

    def _end(self) -> None:
        """Ends this process, which may wait for the lost one in a collective operation, where nothing can interrupt it."""
        time.sleep(self.grace)
        if not self._closed:
            print(f"error: {self._reason or advice(self.failure)}", file=sys.stderr, flush=True)
            os._exit(1)


def advice(failure: str | None) -> str:
    """``failure`` of another process, with what to do."""
    return f"{failure}. Its own log may say more. The same command on all hosts resumes from the last checkpoint."


class Connection:
    """Lines of JSON over a socket."""

    def __init__(self, sock: socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._buffer, self._lock = sock, b"", threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message. Raises OSError."""
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message, None at the end. Raises TimeoutError, OSError, or ValueError for what is no message."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(1 << 16)
            if not data:
                return None
            self._buffer += data
            if len(self._buffer) > _MAX_LINE:
                raise ValueError("a message that is too long")
        line, self._buffer = self._buffer.split(b"\n", 1)
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message of a run")
        return message

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()
