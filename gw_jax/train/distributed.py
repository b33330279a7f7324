"""Runs on several hosts: finding the others, saying that all were started alike, and stopping at the same step.

On one host everything here does nothing.
"""

import importlib.util
import json
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from gw_jax.errors import ConfigError

# What a host says about itself must fit into this many bytes.
_MESSAGE_BYTES = 1 << 16


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects this process with those of the other hosts. Call it before anything uses a device.

    Without arguments the launcher is asked: SLURM with more than one task, Open MPI with more than one rank,
    ``JAX_COORDINATOR_ ADDRESS``, or the machines of a TPU slice; where none of these is there, the run has one process.

    Args:
        coordinator: ``host:port`` of the first process, the same for all.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ConfigError: some of the arguments but not all, or the others did not answer.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise ConfigError(
            f"--coordinator={coordinator}, --num_processes={num_processes} and --process_id={process_id} belong "
            "together; give "
            "all three or none."
        )
    if coordinator is None and not _launched_on_several_hosts():
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, _local_devices())
    except Exception as error:  # The runtime raises what the network and the launcher make of it.
        raise ConfigError(
            f"The processes of this run did not find each other ({type(error).__name__}: {error}). Check that all were "
            "started "
            "with the same --coordinator and --num_processes, and that its port is open."
        ) from error


def _launched_on_several_hosts() -> bool:
    def more_than_one(variable: str) -> bool:
        value = os.environ.get(variable, "1")
        return value.isdigit() and int(value) > 1

    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return True
    if more_than_one("OMPI_COMM_WORLD_SIZE"):
        return True
    # SLURM_NTASKS is also there inside an allocation whose step was not started by srun; SLURM_STEP_NUM_TASKS is not.
    if "SLURM_PROCID" in os.environ and more_than_one("SLURM_STEP_NUM_TASKS"):
        return True
    on_tpu = importlib.util.find_spec("libtpu") is not None and any(
        next(pathlib.Path("/dev").glob(pattern), None) is not None for pattern in ("accel*", "vfio/[0-9]*")
    )
    return on_tpu and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def _local_devices() -> list[int] | None:
    """All GPUs of the node where SLURM runs one task on it; JAX would take the first one only."""
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0]
    if tasks != "1" or not gpus.isdigit() or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    return list(range(int(gpus)))


def is_main() -> bool:
    """Whether this process writes the files and the messages of the run."""
    return jax.process_index() == 0


def check_same_everywhere(facts: dict[str, Any]) -> None:
    """Compares ``facts`` (JSON values: the configuration, versions) with those of the first host.

    Raises:
        ConfigError: on every host, if any differs; the message names hosts and facts.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    text = json.dumps({"host": platform.node(), **facts}, sort_keys=True).encode()
    if len(text) > _MESSAGE_BYTES:
        raise ConfigError(
            f"The configuration takes {len(text)} bytes; at most {_MESSAGE_BYTES} can be compared among hosts."
        )
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    message[: len(text)] = np.frombuffer(text, np.uint8)
    everyone = [
        json.loads(bytes(row).rstrip(b"\0").decode()) for row in np.asarray(multihost_utils.process_allgather(message))
    ]
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


def from_main(number: int) -> int:
    """``number`` of the first process, in every process."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.asarray(number)))


def wait_for_everyone(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether ``flag`` is true in any process."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.asarray(multihost_utils.process_allgather(np.asarray(flag))).any())


def broadcast_from_main(value: Any) -> Any:
    """``value`` of process 0 (JSON), in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    text = json.dumps(value).encode()
    message[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(message))).rstrip(b"\0").decode())
