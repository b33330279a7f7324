"""What was measured of the kernels on kinds of devices: where they were right, and where faster than plain XLA.

Whether a kernel is right is checked on the machine that uses it (:mod:`gw_jax.ops.kernels.answers`): interpreting it, or
compiling it for a device that is not there, does not show what it computes there. Whether it is faster is read here. A
kernel that passes its check is used, except where this table says that it is slower. For a device that is compiled for and
not attached, no check can be made, and this table alone decides.

An entry of :data:`VERIFIED_ON` is added with the output of ``python -m benchmarks.parity`` and ``python -m
benchmarks.group_whitening`` on that kind of device, under ``benchmarks/results``.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class Verified:
    """The checks of a kernel on a kind of device.

    Attributes:
        jax: version of JAX that compiled it. Pallas changes between versions, so older ones do not count.
        dtypes: types of the input for which it was right and faster than plain XLA.
        slower: types of the input for which it was right and slower than plain XLA.
        num_iterations: smallest and largest number of Newton-Schulz iterations.
        results: files under ``benchmarks/results``.
    """

    jax: tuple[int, int, int]
    dtypes: tuple[str, ...]
    slower: tuple[str, ...]
    num_iterations: tuple[int, int]
    results: tuple[str, ...]


# By ``jax.Device.device_kind`` and kernel. No kernel has run on a TPU.
VERIFIED_ON: dict[tuple[str, str], Verified] = {
    ("NVIDIA H100 80GB HBM3", "gpu_triton"): Verified(
        jax=(0, 11, 2),
        dtypes=("bfloat16",),
        # 1.4 times the time of plain XLA in training.
        slower=("float32",),
        num_iterations=(2, 5),
        results=("parity_h100_2026-11-26.json", "group_whitening_h100_2026-11-26.json"),
    ),
}


def is_verified(kernel: str, device_kind: str, dtype: DTypeLike, num_iterations: int) -> bool:
    """Whether :data:`VERIFIED_ON` has the kernel for that kind of device and input."""
    entry = VERIFIED_ON.get((device_kind, kernel))
    if entry is None or jax.__version_info__ < entry.jax:
        return False
    fewest, most = entry.num_iterations
    return jnp.dtype(dtype).name in entry.dtypes and fewest <= num_iterations <= most


def unverified_because(kernel: str, device_kind: str, dtype: DTypeLike, num_iterations: int) -> str:
    """Why :func:`is_verified` is false, as a sentence."""
    entry = VERIFIED_ON.get((device_kind, kernel))
    if entry is None:
        return f"The kernel {kernel} was never measured on {device_kind}, and here is none to check it."
    if jax.__version_info__ < entry.jax:
        oldest = ".".join(map(str, entry.jax))
        return f"The kernel {kernel} was measured on {device_kind} with jax {oldest} and newer; this is {jax.__version__}."
    fewest, most = entry.num_iterations
    return (
        f"Without a {device_kind} at hand, the kernel {kernel} is used for {' and '.join(entry.dtypes)} and {fewest} to "
        f"{most} iterations, where it was right and faster than plain XLA; this is {jnp.dtype(dtype).name} and "
        f"{num_iterations}."
    )


def slower_because(kernel: str, device_kind: str, dtype: DTypeLike) -> str | None:
    """A sentence where the kernel was slower than plain XLA on that kind of device, else None."""
    entry = VERIFIED_ON.get((device_kind, kernel))
    name = jnp.dtype(dtype).name
    if entry is None or name not in entry.slower:
        return None
    return f"On {device_kind} the kernel {kernel} is slower than plain XLA for {name}."
