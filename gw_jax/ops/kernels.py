"""Group Whitening by kernels for TPUs and GPUs: which inputs they take, their derivative, many devices, ``jax.vmap``."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gw_jax.ops import gpu_whitening, tpu_samples, tpu_tiles
from gw_jax.ops.inverse_sqrt import inverse_sqrt_newton
from gw_jax.ops.newton import has_short_derivative
from gw_jax.ops.plain_whitening import affine_per_sample, plain_whiten
from gw_jax.ops.plan import SMALL_MEMORY, KernelName, Plan
from gw_jax.ops.target import BatchSharding, Target
from gw_jax.ops.tpu_layouts import SamplesInLanes, SamplesInSublanes
from gw_jax.ops.tpu_math import LANES

# Bytes of a TPU's memory next to the compute units that a kernel may take.
VMEM = {"TPU v4": 15 << 20, "TPU v5 lite": 110 << 20, "TPU v6 lite": 110 << 20}
# A whole sample takes this many bytes a value at most: three blocks, each twice so that one is moved while the other is
# computed on, two float32 copies, and what the compiler keeps of a sample.
BYTES_PER_VALUE = {2: 24, 4: 36}


def plan_for(
    shape: Sequence[int],
    dtype: Any,
    num_groups: int,
    num_iterations: int,
    epsilon: float,
    device: Target,
    sharding: BatchSharding | None = None,
    *,
    relu: bool = False,
) -> Plan | None:
    """The kernel for an input of ``shape`` on a kind of device, or None if there is none.

    ``sharding`` is that of the batch. ``relu``: whether ``max(., 0)`` of the output is
    wanted; the plan's says whether the kernel does it.
    """
    if len(shape) != 4 or not has_short_derivative(num_iterations) or jnp.dtype(dtype).name not in _TYPES:
        return None
    n, rest = divmod(shape[0], 1 if sharding is None else sharding.num_devices)
    h, w, c = shape[1:]
    if rest:
        return None
    plan = functools.partial(Plan, h * w, c, num_groups, num_iterations, epsilon, sharding=sharding)
    if device.platform == "gpu":
        fits = gpu_whitening.takes(device.kind, h * w, num_groups, c // num_groups)
        return plan("gpu_whitening", relu=relu) if fits else None
    memory = VMEM.get(device.kind, 0)
    kernel, tile = _tpu_kernel(n, h * w, c, jnp.dtype(dtype).itemsize, memory)
    return None if kernel is None else plan(kernel, tile=tile, memory=memory)


def fills_the_device(plan: Plan, num_samples: int) -> bool:
    """Whether a kernel for ``num_samples`` on all devices keeps all of a device busy."""
    devices = 1 if plan.sharding is None else plan.sharding.num_devices
    return plan.kernel != "gpu_whitening" or num_samples // devices >= gpu_whitening.FEWEST_SAMPLES


def _tpu_kernel(n: int, positions: int, c: int, width: int, memory: int) -> tuple[KernelName | None, int]:
    """Which TPU kernel takes ``n`` samples a device, of values of ``width`` bytes, and the positions of its tiles."""
    # A v4's compiler picks single rows of 128 channels only; matrices between more than 1,024 take minutes to compile.
    if c > (LANES if memory <= SMALL_MEMORY else 1024):
        return None, 0
    # The largest kernel has four matrices between channels.
    needed = positions * tpu_samples.SAMPLES * c * BYTES_PER_VALUE[width] + 4 * 4 * c * c
    whole = memory > SMALL_MEMORY and needed <= memory
    if c % LANES == 0 and n % tpu_samples.SAMPLES == 0 and whole:
        return "tpu_samples", 0
    layouts: dict[KernelName, Any] = {"tpu_lane_tiles": SamplesInLanes, "tpu_sublane_tiles": SamplesInSublanes}
    for kernel, layout in layouts.items():
        # What the compiler keeps of a sample has to fit beside what a tile takes.
        usable = 3 * memory // 4
        if layout.takes(n, c) and (tile := tpu_tiles.tile_positions(kernel, positions, c, width, usable)):
            return kernel, tile
    return None, 0


_TYPES = ("bfloat16", "float32")


def _definition(plan: Plan, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    inverse_sqrt = functools.partial(inverse_sqrt_newton, num_iterations=plan.num_iterations, epsilon=plan.epsilon)
    y = plain_whiten(x, plan.num_groups, inverse_sqrt, None, scale, bias).astype(x.dtype)
    return jax.nn.relu(y) if plan.relu else y


def _plain_forward(plan: Plan, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    y = _definition(plan, x, scale, bias)
    if _MODULES[plan.kernel] is not tpu_tiles:
        return (y,)
    # What the kernels would save; nothing reads it.
    row = LANES if plan.kernel == "tpu_lane_tiles" else plan.channels
    saved = ((x.shape[0], row), (x.shape[0], plan.num_groups, plan.num_groups))
    return (y, *(jnp.zeros_like(x, jnp.float32, shape=shape) for shape in saved))


def _plain_backward(plan: Plan, x: jax.Array, dy: jax.Array, scale: jax.Array, *saved: jax.Array) -> tuple[jax.Array, ...]:
    if plan.relu:
        dy, plan = jnp.where(saved[0] > 0, dy, 0), dataclasses.replace(plan, relu=False)
    return jax.vjp(functools.partial(_definition, plan), x, scale, jnp.zeros_like(scale))[1](dy)


_MODULES: dict[KernelName, Any] = {
    "tpu_samples": tpu_samples,
    "tpu_lane_tiles": tpu_tiles,
    "tpu_sublane_tiles": tpu_tiles,
    "gpu_whitening": gpu_whitening,
}


def _here(direction: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel where the program is compiled for the device that it was planned for, else the definition."""

    def run(plan: Plan, *arrays: jax.Array) -> Any:
        def kernel(*arrays: jax.Array) -> Any:
            results = getattr(_MODULES[plan.kernel], direction)(plan, *arrays)
            # Kernels for TPUs give arrays with one axis for the positions. XLA would move what comes next, such as a ReLU,
            # in front of the reshape to images, where the convolution after it cannot take it in.
            return results if plan.kernel == "gpu_whitening" else jax.lax.optimization_barrier(results)

        if plan.interpret:
            return kernel(*arrays)
        platform = "cuda" if plan.kernel == "gpu_whitening" else "tpu"
        return jax.lax.platform_dependent(*arrays, default=functools.partial(plain, plan), **{platform: kernel})

    return run


def _on_every_device(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run(plan, *arrays)`` on every device for its samples. XLA cannot split a kernel by itself: it would gather."""

    def everywhere(plan: Plan, *arrays: jax.Array) -> Any:
        if plan.sharding is None:
            return run(plan, *arrays)
        along = PartitionSpec(plan.sharding.axes)
        return jax.shard_map(
            functools.partial(run, plan), mesh=plan.sharding.mesh, in_specs=along, out_specs=along, check_vma=False
        )(*arrays)

    return everywhere


def _samples_of_all(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run(plan, *arrays)`` that takes an axis of ``jax.vmap`` as more samples, which do not depend on each other."""

    def with_plan(plan: Plan, *arrays: jax.Array) -> Any:
        mapped = jax.custom_batching.custom_vmap(functools.partial(run, plan))

        @mapped.def_vmap
        def _(size: int, batched: Sequence[bool], *arrays: jax.Array) -> Any:
            def joined(array: jax.Array, is_batched: bool) -> jax.Array:
                array = array if is_batched else jnp.broadcast_to(array[None], (size, *array.shape))
                return array.reshape(size * array.shape[1], *array.shape[2:])

            results = with_plan(plan, *map(joined, arrays, batched))
            apart = jax.tree.map(lambda array: array.reshape(size, -1, *array.shape[1:]), results)
            return apart, jax.tree.map(lambda _: True, results)

        return mapped(*arrays)

    return with_plan


_forward_run = _samples_of_all(_on_every_device(_here("forward", _plain_forward)))
_backward_run = _samples_of_all(_on_every_device(_here("backward", _plain_backward)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _whiten(x: jax.Array, scale: jax.Array, bias: jax.Array, plan: Plan) -> jax.Array:
    return _forward_run(plan, x, scale, bias)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, plan: Plan) -> tuple[jax.Array, Any]:
    y, *saved = _forward_run(plan, x, scale, bias)
    # What a convolution after the ReLU keeps for its own derivative is the same array.
    return y, (x, scale, *([y] if plan.relu else saved))


def _backward(plan: Plan, residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, *saved = residuals
    return tuple(_backward_run(plan, x, dy, scale, *saved))


_whiten.defvjp(_forward, _backward)


def kernel_whiten(x: jax.Array, plan: Plan, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """Group Whitening by Newton iteration, see :func:`gw_jax.group_whiten`, and the ReLU after it if the plan says so.

    There is no forward-mode derivative.

    Where it is lowered for another kind of device than that it was planned for, the definition runs instead.

    Args:
        x: ``[n, h, w, c]``.
        plan: what :func:`plan_for` made for ``x``.
        scale: ``[c]``, or None.
        bias: ``[c]``, or None.

    Returns:
        An array of the shape and type of ``x``.
    """
    return _whiten(x, *affine_per_sample(x, scale, bias), plan)
