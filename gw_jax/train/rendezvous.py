"""Rendezvous of the processes of a run: all that were started, each with a number of its own."""

import contextlib
import platform
import socket
import threading
import time

from gw_jax.errors import ConfigError
from gw_jax.train.peers import Connection, Peers
from gw_jax.train.relay import dial


def meet(host: str, port: int, num_processes: int, process_id: int, timeout: float) -> Peers:
    """Waits until all processes of a run are there.

    Args:
        host: address of process 0.
        port: port on which process 0 listens; it is free again when this returns.
        num_processes: how many processes the run has.
        process_id: number of this one, from 0.
        timeout: seconds to wait; also how long a process may give no sign of life later.

    Raises:
        ConfigError: processes are missing, two have one number, or they disagree on how many there are.
    """
    peers = Peers(process_id, num_processes, timeout)
    deadline = time.monotonic() + timeout
    if process_id == 0:
        _gather_members(peers, port, deadline)
    else:
        _join(peers, host, port, deadline)
    for other in list(peers.connections):
        peers.watch(other)
    return peers


def _gather_members(peers: Peers, port: int, deadline: float) -> None:
    try:
        listener = _listen(port)
    except OSError as error:
        raise ConfigError(
            f"Process 0 cannot listen on port {port}: {error.strerror or error}. Give another port in --coordinator."
        ) from error
    done = threading.Event()

    def refuse(connection: Connection, text: str) -> None:
        with contextlib.suppress(OSError):
            connection.send({"refused": text})

    def welcome(sock: socket.socket) -> None:
        connection = Connection(sock)
        try:
            hello = connection.receive(peers.timeout) or {}
            other, number, name = int(hello["process_id"]), int(hello["num_processes"]), str(hello["host"])
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()  # A port scanner, or a health check.
            return
        text = None
        with peers.changed:
            if number != peers.num_processes:
                text = f"--num_processes is {number} on {name} and {peers.num_processes} in process 0 ({platform.node()})"
            elif not 0 < other < number or other in peers.connections:
                taken = platform.node() if other == 0 else peers.hosts[other]
                text = f"--process_id={other} was given to two processes, on {taken} and on {name}"
            else:
                peers.connections[other], peers.hosts[other] = connection, name
            if text is not None and peers.failure is None:
                peers.failure = text
            peers.changed.notify_all()
        if text is not None:
            refuse(connection, text)

    def accept() -> None:
        while not done.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=welcome, args=(sock,), daemon=True).start()

    listener.settimeout(0.2)
    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    expected = peers.num_processes - 1
    with peers.changed:
        while len(peers.connections) < expected and peers.failure is None and time.monotonic() < deadline:
            peers.changed.wait(0.2)
        failure = peers.failure
        missing = [i for i in range(1, peers.num_processes) if i not in peers.connections]
    done.set()
    thread.join()
    listener.close()
    if failure is None and missing:
        several = len(missing) > 1
        failure = (
            f"Process{'es' if several else ''} {', '.join(map(str, missing))} of {peers.num_processes} did not come within "
            f"{peers.timeout:.0f} s"
        )
    if failure is not None:
        for connection in peers.connections.values():
            refuse(connection, failure)
        raise _refusal(failure)
    for connection in peers.connections.values():
        with contextlib.suppress(OSError):
            connection.send({"ready": peers.hosts})


def _join(peers: Peers, host: str, port: int, deadline: float) -> None:
    where = f"{host}:{port}"
    connection = Connection(dial(host, port, deadline, lambda error: _unreachable(peers, where, error)))
    try:
        connection.send(
            {"process_id": peers.process_id, "num_processes": peers.num_processes, "host": peers.hosts[peers.process_id]}
        )
        # Process 0 may have been started later, and then waits longer.
        answer = connection.receive(peers.timeout + peers.grace)
        if answer is None:
            raise ConfigError(f"Process 0 at {where} ended before all processes were there. Its log may say why.")
        if "refused" in answer:
            raise _refusal(str(answer["refused"]))
        peers.hosts = [str(name) for name in answer["ready"]]
    except TimeoutError as error:
        raise ConfigError(f"Process 0 at {where} did not answer within {peers.timeout:.0f} s.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"What answers at --coordinator={where} is not process 0 of a run that starts now ({type(error).__name__}). "
            "Check the port, and that no run uses it already."
        ) from error
    peers.connections[0] = connection


def _refusal(text: str) -> ConfigError:
    return ConfigError(
        f"{text[0].upper()}{text[1:]}. Start the same command on all hosts, with the same --coordinator and "
        "--num_processes and each with its own --process_id; they wait for each other for --config.distributed.timeout_s."
    )


def _unreachable(peers: Peers, where: str, error: OSError | None) -> ConfigError:
    reason = f" ({error.strerror or error})" if error is not None else ""
    return ConfigError(
        f"Process {peers.process_id} could not reach process 0 at --coordinator={where} within {peers.timeout:.0f} "
        f"s{reason}. Check that process 0 runs there, that host and port are the same in all commands, and that no "
        "firewall closes the port; --config.distributed.timeout_s is how long to try."
    )


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)
