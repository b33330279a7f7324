"""Compiling for TPU slices on a machine without one.

``libtpu`` holds the compiler (``pip install libtpu``). What it says about memory, bytes and collectives is what a slice
would run; its estimates of time are not used.
"""

import os
from typing import Any

# Before JAX starts: no TPU is looked for, neither here nor in a cloud's metadata.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # It cannot hold programs of devices that are not there.
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Two compilations at a time on one machine.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
os.environ.update(_ENVIRONMENT)

from jax.experimental import topologies  # noqa: E402

from benchmarks.steps import Program, collectives, describe, lower_steps  # noqa: E402
from gw_jax.errors import ConfigError  # noqa: E402

__all__ = ["Program", "collectives", "describe", "devices", "lower_steps"]


def devices(topology: str) -> list[Any]:
    """The devices of a TPU slice such as "v5e:16x16" or "v4:2x2x4".

    Raises:
        ConfigError: libtpu is not installed, or does not support the slice.
    """
    # Both cores of a v4 chip are one device, as the clouds set them up; later chips always are.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
    except Exception as error:  # The runtime's errors: no libtpu, or an unknown name.
        raise ConfigError(
            f"The TPU slice {topology!r} cannot be described ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Names are such as v5e:2x2, v5e:16x16, v4:2x2x1 or v4:4x4x4, and the compiler is a package: pip install libtpu."
        ) from error
