"""Runs on several hosts: connecting the processes, exchanging small values, and ending all when one is lost.

On one host everything here does nothing.
"""

import contextlib
import dataclasses
import os
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax

from gw_jax.config_checks import number
from gw_jax.errors import CheckpointError, ConfigError, DataError, TrainingError, UserError, shown
from gw_jax.train.peers import Peers, advice
from gw_jax.train.relay import Relay
from gw_jax.train.rendezvous import meet
from gw_jax.versions import shutdown_timeout

T = TypeVar("T")
# Processes wait for each other this many times ``timeout_s``: one of them may have to read or prepare data.
_PATIENCE = 10
_ERRORS = {kind.__name__: kind for kind in (UserError, ConfigError, DataError, CheckpointError, TrainingError)}

_peers: Peers | None = None


@dataclasses.dataclass(slots=True, kw_only=True)
class DistributedConfig:
    """Supervision of the processes of a run on several hosts.

    Attributes:
        timeout_s: seconds within which all processes must have started, and after which a process that gives no sign of
            life is lost.
    """

    timeout_s: float = number(60.0, 1, 86400)


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_s: float = 60.0,
) -> None:
    """Connects this process with those of the other hosts. Call it before anything uses a device.

    Without arguments JAX says whether a launcher started several processes: SLURM, Open MPI, Kubernetes, a TPU slice.
    Where it recognises none, the run has one process, and this function does nothing.

    Args:
        coordinator: ``host:port`` of process 0, the same for all.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        timeout_s: ``config.distributed.timeout_s``.

    Raises:
        ConfigError: some of the arguments but not all, or values that do not fit; processes that are missing, that two were
            given one number, or that process 0 cannot be reached.
    """
    global _peers
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    local_devices = _all_gpus_of_the_node()
    if any(value is not None for value in given.values()):
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ConfigError(
                f"{' and '.join(missing)} missing: {', '.join(given)} belong together; give all three or none."
            )
    else:
        found = _detect_cluster(timeout_s, local_devices)
        if found is None:
            return
        coordinator, num_processes, process_id, local_devices = found
    assert coordinator is not None
    assert num_processes is not None
    assert process_id is not None
    host, port = _split_address(coordinator)
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ConfigError(f"--process_id={process_id} must be at least 0 and below --num_processes={num_processes}.")
    if num_processes == 1:
        return
    if _peers is not None:
        raise ConfigError("The processes of this run are connected already; initialize() is called once.")
    peers = meet(host, port, num_processes, process_id, timeout_s)
    # From here on a failure is reported to the others.
    _peers = peers
    # Signals are handled in stop.py.
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)
    address = f"127.0.0.1:{port if process_id == 0 else Relay(host, port, timeout_s).port}"
    patience = round(timeout_s) + 1
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            local_devices,
            coordinator_bind_address=f"[::]:{port}",
            cluster_detection_method="deactivate",
            initialization_timeout=patience,
            # Later than our own watch, which says what happened.
            heartbeat_timeout_seconds=2 * patience + 60,
            **shutdown_timeout(patience),
        )
    except Exception as error:  # The runtime raises what network and devices make of it.
        raise ConfigError(f"JAX could not connect the processes of this run ({type(error).__name__}: {error}).") from error


def _split_address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={shown(coordinator)} must be HOST:PORT, such as 10.0.0.1:8476.")
    return host.strip("[]"), int(port)


def _detect_cluster(timeout_s: float, local_devices: list[int] | None) -> tuple[str, int, int, list[int] | None] | None:
    """Coordinator, process count, process index and local devices, as the launcher gives them; None for one process."""
    try:
        # No public function detects a cluster without connecting.
        from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm
        from jax._src.clusters import ClusterEnv

        if running_in_cloud_tpu_vm and "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu"):
            return None
        # A shell inside an allocation of several tasks is one task.
        if "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            return None
        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, local_devices, None, round(timeout_s)
        )
    except Exception as error:  # A notebook's TPU without a metadata server, or another version of JAX.
        print(
            f"warning: JAX could not tell whether this is one of several hosts ({type(error).__name__}: {error}). It runs "
            "alone; if there are more, give --coordinator, --num_processes and --process_id.",
            file=sys.stderr,
        )
        return None
    if address is None or count is None or index is None:
        for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JAX_COORDINATOR_ADDRESS"):
            value = os.environ.get(variable, "1")
            if value != "1":
                raise ConfigError(
                    f"{variable}={value} says that this is one of several processes, but JAX does not recognise the "
                    "launcher. Give --coordinator, --num_processes and --process_id."
                )
        return None
    return None if count == 1 else (address, count, index, None if devices is None else list(devices))


def _all_gpus_of_the_node() -> list[int] | None:
    """All GPUs of the node where SLURM runs one task on it; JAX would use the first one only."""
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0]
    if tasks != "1" or not gpus.isdigit() or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    return list(range(int(gpus)))


def is_main() -> bool:
    """Whether this process writes the files and the messages of the run."""
    return jax.process_index() == 0


def gather(name: str, value: Any) -> list[Any]:
    """The ``value`` of every process, JSON values, in the order of their numbers.

    Args:
        name: what the value is; the same in all processes, which must call this in the same order.
        value: the value of this process.

    Raises:
        TrainingError: a process is lost, does something else, or has not come within ten times ``timeout_s``.
        ConfigError: JAX has several processes that this module did not connect.
    """
    if _peers is not None:
        return _peers.gather(name, value, _PATIENCE * _peers.timeout)
    if jax.process_count() > 1:
        raise ConfigError(
            "Connect the processes by gw_jax.train.distributed.initialize, not by jax.distributed.initialize."
        )
    return [value]


def wait_for_everyone(name: str) -> None:
    """Returns when every process has come here. Raises as :func:`gather` does."""
    gather(name, None)


def broadcast_from_main(name: str, value: T) -> T:
    """The ``value`` of process 0, a JSON value, in every process. Raises as :func:`gather` does."""
    return gather(name, value)[0]


def any_process(name: str, flag: bool) -> bool:
    """Whether ``flag`` is true in any process. Raises as :func:`gather` does."""
    return any(gather(name, bool(flag)))


def run_on_main(name: str, function: Callable[[], T]) -> T:
    """Calls ``function`` in process 0 only; all processes return its result, a JSON value.

    Raises:
        UserError: in all processes, the one that ``function`` raised. Other errors are as for :func:`gather`.
    """
    answer: dict[str, Any] = {}
    if is_main():
        try:
            answer = {"value": function()}
        except UserError as error:
            answer = {"error": [type(error).__name__, str(error)]}
    answer = broadcast_from_main(name, answer)
    if "error" in answer:
        kind, text = answer["error"]
        raise _ERRORS.get(kind, UserError)(text)
    return answer["value"]


def check_same_everywhere(facts: dict[str, Any]) -> None:
    """Compares ``facts`` (JSON values: the configuration, versions) with those of process 0.

    Raises:
        ConfigError: on every host, if any differs; the message names hosts and facts.
    """
    everyone = gather("configuration", {"host": platform.node(), **facts})
    first = everyone[0]
    differences = [
        f"{name} is {first.get(name)!r} in process 0 ({first['host']}) and {other.get(name)!r} in process {index} "
        f"({other['host']})"
        for index, other in enumerate(everyone)
        for name in sorted({*first, *other} - {"host"})
        if first.get(name) != other.get(name)
    ]
    if differences:
        more = f" ({len(differences)} differences in all)" if len(differences) > 5 else ""
        raise ConfigError(
            f"The hosts were not started alike: {'; '.join(differences[:5])}{more}. Start the same command with the same "
            "packages on all of them."
        )


@contextlib.contextmanager
def reporting_failures() -> Iterator[None]:
    """Reports an exception to the other processes at once: it may take long to leave code that waits for them.

    Raises:
        TrainingError: instead of an exception that a lost process caused, such as a collective operation that broke off;
            the message names that process. Other exceptions pass.
    """
    try:
        yield
    except Exception as error:
        if _peers is None:
            raise
        if not isinstance(error, UserError) and (failure := _peers.wait_for_failure()) is not None:
            raise TrainingError(advice(failure)) from error
        _peers.fail(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise


def finish() -> None:
    """Ends the connections when all processes are done. A process that ends without it is lost to the others."""
    global _peers
    if _peers is not None:
        # Process 0 may still write and plot.
        _peers.gather("end of the run", None, _PATIENCE * _peers.timeout)
        _peers.close()
        _peers = None


def leave(code: int, reason: str) -> NoReturn:
    """Ends this process, whose run has failed, with exit code ``code``, and reports the ``reason`` to the others.

    Not through Python's own end, where JAX waits for the other processes and then aborts.
    """
    if _peers is not None:
        _peers.fail(reason)
        _peers.close()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)
    sys.exit(code)
