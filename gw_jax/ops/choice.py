"""The choice of an implementation of Group Whitening, and the reason for it."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gw_jax.ops import kernels
from gw_jax.ops.checks import in_double_precision
from gw_jax.ops.kernels.answers import not_used_because
from gw_jax.ops.kernels.placement import (
    DeviceKind,
    batch_sharding,
    batch_sharding_known,
    compiles_for_attached_device,
    device_kind,
)
from gw_jax.ops.kernels.verified import is_verified, slower_because, unverified_because
from gw_jax.ops.options import Implementation, Method
from gw_jax.ops.rows import channels_pay
from gw_jax.versions import no_kernels_because


@dataclasses.dataclass(frozen=True)
class Choice:
    """What computes a call of :func:`gw_jax.group_whiten`.

    Attributes:
        implementation: "plain", "matmul" or "kernel".
        spec: sizes of the kernel, or None where there is none for the input.
        reason: why it was chosen, as a sentence.
    """

    implementation: Implementation
    spec: kernels.KernelSpec | None
    reason: str


def choose_implementation(
    x: jax.Array,
    num_groups: int,
    *,
    method: Method,
    num_iterations: int,
    epsilon: float,
    has_mask: bool,
    relu: bool,
    dtype: DTypeLike,
    implementation: Implementation,
) -> Choice:
    """Chooses for an array, or a traced one. The arguments are those of :func:`gw_jax.group_whiten`, checked."""
    spec = None
    if implementation in ("auto", "kernel", "prefer_kernel") and method == "newton":
        sizes = x.shape, x.dtype, num_groups, num_iterations, epsilon
        spec = kernels.choose_kernel(*sizes, device_kind(), batch_sharding(x), has_mask=has_mask, relu=relu)
    if implementation not in ("auto", "prefer_kernel"):
        return Choice(implementation, spec, f'implementation="{implementation}" was requested.')
    device = device_kind()
    reason = _no_kernel_because(x, num_groups, num_iterations, spec, method, has_mask, dtype)
    if reason is None:
        assert spec is not None
        reason = _not_used_because(spec, x, device, implementation)
        if reason is None:
            why = "fits and was requested"
            if implementation == "auto":
                where = "its check on this machine" if compiles_for_attached_device() else f"the checks on {device.kind}"
                why = f"passed {where}"
            return Choice("kernel", spec, f"The kernel {spec.kernel} {why}.")
    return Choice(_formulation(x, device, has_mask), spec, reason)


def _formulation(x: jax.Array, device: DeviceKind, has_mask: bool) -> Implementation:
    """The better formulation in plain XLA on a device."""
    if device.platform in ("cpu", "gpu"):
        # Compiled for an A100, "matmul" moves 0.43 of the definition's bytes at 112 x 112 x 64 and 0.63 at 7 x 7 x 512
        # (python -m benchmarks.gpu_cost).
        return "matmul"
    # Compiled for a v5e, 2 masked samples of 200 x 336: 23.6 passes with 64 channels and 21.6 with 256 (masked GroupNorm:
    # 20.7 and 14.0). In batches of small samples, rows of 64 groups fill half of a TPU's lanes.
    return "matmul" if has_mask or channels_pay(x.shape, device.platform) else "plain"


def _no_kernel_because(
    x: jax.Array,
    num_groups: int,
    num_iterations: int,
    spec: kernels.KernelSpec | None,
    method: Method,
    has_mask: bool,
    dtype: DTypeLike,
) -> str | None:
    """Why no kernel computes a call, apart from checks on the device, or None where one could."""
    device = device_kind()
    if method != "newton":
        return f'There is no kernel for method="{method}".'
    if spec is None:
        if device.platform == "cpu":
            return "There are no kernels for CPUs."
        if (reason := no_kernels_because()) is not None:
            return reason
        if not has_mask and (reason := kernels.missing_because(x, num_groups, num_iterations, device)) is not None:
            return reason
        masked = " with a mask" if has_mask else ""
        precision = " under jax_enable_x64" if device.platform == "tpu" and in_double_precision() else ""
        return f"There is no kernel for {x.dtype} {tuple(x.shape)}{masked} on {device.kind}{precision}."
    if not kernels.fills_the_device(spec, x.shape[0]):
        return f"A batch of {x.shape[0]} is too small for the kernel {spec.kernel} to use all of a device."
    if dtype != x.dtype:
        return f"The output's type {jnp.dtype(dtype)} differs from the input's {x.dtype}."
    if not batch_sharding_known(x):
        return f"How the batch is sharded over {jax.device_count()} devices is not known where the layer is traced."
    return None


def _not_used_because(
    spec: kernels.KernelSpec, x: jax.Array, device: DeviceKind, implementation: Implementation
) -> str | None:
    """Why a kernel that could compute a call does not, or None. It must be right, and not known to be slower."""
    if implementation == "auto":
        if not compiles_for_attached_device():
            known = spec.kernel, device.kind, x.dtype, spec.num_iterations
            return None if is_verified(*known) else unverified_because(*known)
        if (slower := slower_because(spec.kernel, device.kind, x.dtype)) is not None:
            return slower
    return not_used_because(spec, x, device, preferred=implementation == "prefer_kernel")
