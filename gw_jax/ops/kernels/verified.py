"""The kernels that ``implementation="auto"`` uses: those that were right, and faster than plain XLA, on the device itself.

Interpreting a kernel, or compiling it for a device that is not there, does not show what it computes there. An entry of
:data:`VERIFIED_ON` is added with the output of ``python -m benchmarks.parity`` and ``python -m benchmarks.group_whitening``
on that kind of device, under ``benchmarks/results``.
"""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class Verified:
    """The checks of a kernel on a kind of device.

    Attributes:
        jax: version of JAX that compiled it. Pallas changes between versions, so older ones do not count.
        dtypes: types of the input for which it was right and faster than plain XLA.
        num_iterations: smallest and largest number of Newton-Schulz iterations.
        results: files under ``benchmarks/results``.
    """

    jax: tuple[int, int, int]
    dtypes: tuple[str, ...]
    num_iterations: tuple[int, int]
    results: tuple[str, ...]


# By ``jax.Device.device_kind`` and kernel. No kernel has run on a TPU.
VERIFIED_ON: dict[tuple[str, str], Verified] = {
    ("NVIDIA H100 80GB HBM3", "gpu_triton"): Verified(
        jax=(0, 11, 2),
        # In float32 it is right, too, but 1.4 times as slow as plain XLA in training.
        dtypes=("bfloat16",),
        num_iterations=(2, 5),
        results=("parity_h100_2026-11-26.json", "group_whitening_h100_2026-11-26.json"),
    ),
}


def is_verified(kernel: str, device_kind: str, dtype: DTypeLike, num_iterations: int) -> bool:
    """Whether :data:`VERIFIED_ON` has the kernel for that kind of device and input.

    Logs once per kind of device that its kernel was never checked on it.
    """
    entry = VERIFIED_ON.get((device_kind, kernel))
    if entry is None or jax.__version_info__ < entry.jax:
        _log_unverified(kernel, device_kind)
        return False
    fewest, most = entry.num_iterations
    return jnp.dtype(dtype).name in entry.dtypes and fewest <= num_iterations <= most


def unverified_because(kernel: str, device_kind: str, dtype: DTypeLike, num_iterations: int) -> str:
    """Why :func:`is_verified` is false, as a sentence."""
    entry = VERIFIED_ON.get((device_kind, kernel))
    if entry is None:
        return f"The kernel {kernel} was never checked on {device_kind}; python -m benchmarks.parity checks it."
    if jax.__version_info__ < entry.jax:
        oldest = ".".join(map(str, entry.jax))
        return f"The kernel {kernel} was checked on {device_kind} with jax {oldest} and newer; this is {jax.__version__}."
    fewest, most = entry.num_iterations
    return (
        f"On {device_kind} the kernel {kernel} is used for {' and '.join(entry.dtypes)} and {fewest} to {most} iterations, "
        f"where it was right and faster than plain XLA; this is {jnp.dtype(dtype).name} and {num_iterations}."
    )


@functools.cache
def _log_unverified(kernel: str, device_kind: str) -> None:
    logging.getLogger(__name__).warning(
        "Group Whitening has a kernel for %s (%s) that was never checked on it with JAX %s or an older version. Plain XLA "
        'runs instead. Check it with python -m benchmarks.parity, and use it with implementation="prefer_kernel".',
        device_kind,
        kernel,
        jax.__version__,
    )
