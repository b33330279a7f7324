"""A local port in front of JAX's coordination service, which outlives the connection to it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable


def dial(host: str, port: int, deadline: float, failed: Callable[[OSError | None], Exception]) -> socket.socket:
    """Connects, and retries until ``deadline``.

    Args:
        host: address to connect to.
        port: its port.
        deadline: on ``time.monotonic``'s clock.
        failed: makes the error from the last reason, if there is one.

    Raises:
        Exception: what ``failed`` makes, when the deadline has passed.
    """
    error: OSError | None = None
    while (left := deadline - time.monotonic()) > 0:
        try:
            return socket.create_connection((host, port), timeout=min(left, 5.0))
        except OSError as reason:
            error = reason
            time.sleep(min(0.2, max(left, 0)))
    raise failed(error)


class Relay:
    """A local port that leads to ``host:port``, and stays open when the connection breaks.

    JAX's client aborts its process as soon as its connection to the service in process 0 closes. Through the relay it only
    notices that nobody answers, and :class:`Peers` has the time to report what happened.
    """

    def __init__(self, host: str, port: int, timeout: float):
        self._target, self._timeout = (host, port), timeout
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        # Keeps the sockets of broken connections open.
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), name="relay", daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._sockets.append(near)
        try:
            far = dial(*self._target, time.monotonic() + self._timeout, lambda error: error or TimeoutError())
        except OSError:
            return
        self._sockets.append(far)
        for sock in (near, far):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_pump, args=(near, far, True), name="relay", daemon=True).start()
        _pump(far, near, False)


def _pump(source: socket.socket, sink: socket.socket, close: bool) -> None:
    """Copies until ``source`` ends, and then closes ``sink``, if asked to."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    if close:
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
