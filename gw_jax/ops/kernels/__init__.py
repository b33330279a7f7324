"""Kernels of Group Whitening for TPUs and GPUs: their choice, derivative and sharding, and ``jax.vmap``.

================  ===============================================================================================
gpu_triton        GPUs: a program per sample, in tiles (Pallas on Triton)
gpu_split         GPUs: small kernels, of which a sample has several programs (jax_triton)
tpu_resident      TPUs: eight whole samples on the chip
tpu_tiled         TPUs: samples in tiles, in one of the four layouts of tpu_layouts, two of which have masks
tpu_math          what both TPU kernels compute on the chip
affine products   scale, bias and mask per sample; products and types of results
spec placement    the sizes of a kernel; the device kind and the sharding of the batch, which decide
answers           what this process believes about kernels, which decides whether "auto" uses them
check_cache       answers of checks, in files
verified          measurements on kinds of devices: where a kernel was slower
================  ===============================================================================================
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from gw_jax.ops.checks import in_double_precision
from gw_jax.ops.inverse_sqrt import supports_vjp
from gw_jax.ops.kernels import gpu_split, gpu_triton, tpu_resident, tpu_tiled
from gw_jax.ops.kernels.affine import affine_per_sample, full_mask
from gw_jax.ops.kernels.placement import BatchSharding, DeviceKind
from gw_jax.ops.kernels.spec import SMALL_MEMORY, KernelName, KernelSpec
from gw_jax.ops.kernels.tpu_layouts import LAYOUTS
from gw_jax.ops.kernels.tpu_math import LANES
from gw_jax.versions import no_kernels_because

# Bytes of a TPU's VMEM that a kernel may use.
VMEM = {"TPU v4": 15 << 20, "TPU v5 lite": 110 << 20, "TPU v6 lite": 110 << 20}
# Bytes per value of a whole sample, at most: three double-buffered blocks, two float32 copies, and what the compiler keeps.
BYTES_PER_VALUE = {2: 24, 4: 36}
SUPPORTED = (
    "There are kernels for TPU v4, v5e and v6e, for H100, H200 and B200 GPUs, and with the extra jax-triton for A100, A10, "
    'L4 and the like, for method="newton" with 2 to 14 iterations, bfloat16 or float32, and [n, h, w, c]. TPUs, without a '
    "mask: n a multiple of 8 and c 64, 128, 256, ... 1024 (v4: ... 512, from 256 in up to 128 groups), or n a multiple of "
    "128 and c 2, 4, ... 64, that fits on the chip. v5e and v6e, with or without a mask: at least 1024 positions, up to "
    "128 groups, and c 64, 128, 192, ... 1024, or 16 or 32. TPUs: without jax_enable_x64. GPUs, without a "
    "mask: 16, 32 or 64 groups of 1, 2, 4, ... 64 channels (float32 by jax_triton: ... 16) and at least 16 values."
)
_DTYPES = ("bfloat16", "float32")


# Modules with ``forward(spec, x, scale, bias)``, which returns the output and what ``backward`` needs besides the input
# (of the shapes ``saved(spec, n)``; a module without that function saves nothing), and ``backward(spec, x, dy, scale,
# *saved)``, which returns the gradients of input, scale and bias. Kernels that take a mask have it as a last argument.
# With a ReLU, the output is the first of ``saved``. Images are ``[n, h, w, c]``, scale and bias ``[n, c]``.
_MODULES: dict[KernelName, ModuleType] = {
    "tpu_resident": tpu_resident,
    "tpu_lane_tiles": tpu_tiled,
    "tpu_sublane_tiles": tpu_tiled,
    "tpu_position_tiles": tpu_tiled,
    "tpu_column_tiles": tpu_tiled,
    "gpu_triton": gpu_triton,
    "gpu_split": gpu_split,
}

# (spec, x, scale, bias, mask) -> output, in plain JAX.
Definition = Callable[[KernelSpec, jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


def choose_kernel(
    shape: Sequence[int],
    dtype: DTypeLike,
    num_groups: int,
    num_iterations: int,
    epsilon: float,
    device: DeviceKind,
    sharding: BatchSharding | None = None,
    *,
    has_mask: bool = False,
    relu: bool = False,
) -> KernelSpec | None:
    """The kernel for an input, or None if there is none, or if the installed JAX is too old for kernels.

    Args:
        shape: of the input on all devices, ``[n, h, w, c]``; other numbers of axes have no kernel.
        dtype: of the input; bfloat16 and float32 have kernels.
        num_groups: divides ``c``.
        num_iterations: Newton-Schulz iterations.
        epsilon: added to the covariance's diagonal.
        device: the kind of device that the kernel is compiled for.
        sharding: how the batch is sharded; a kernel sees the samples of one device.
        has_mask: whether a mask says which positions count.
        relu: whether ``max(., 0)`` of the output is requested; the result's ``relu`` says whether the kernel does it.
    """
    spec = _kernel_that_fits(shape, dtype, num_groups, num_iterations, epsilon, device, sharding, has_mask, relu)
    if spec is not None and (reason := no_kernels_because()) is not None:
        _log_once(reason)
        return None
    return spec


@functools.cache
def _log_once(reason: str) -> None:
    logging.getLogger(__name__).warning(reason)


def _kernel_that_fits(
    shape: Sequence[int],
    dtype: DTypeLike,
    num_groups: int,
    num_iterations: int,
    epsilon: float,
    device: DeviceKind,
    sharding: BatchSharding | None,
    has_mask: bool,
    relu: bool,
) -> KernelSpec | None:
    if len(shape) != 4 or not supports_vjp(num_iterations) or jnp.dtype(dtype).name not in _DTYPES:
        return None
    n, rest = divmod(shape[0], 1 if sharding is None else sharding.num_devices)
    h, w, c = shape[1:]
    if rest:
        return None
    spec = functools.partial(KernelSpec, h * w, c, num_groups, num_iterations, epsilon, sharding=sharding)
    if device.platform == "gpu":
        if has_mask:
            return None
        d = c // num_groups
        # The kernel of whole samples has run on an H100; its cards keep it, while Pallas has Triton.
        if gpu_triton.serves(device.kind):
            return spec("gpu_triton", relu=relu) if gpu_triton.supports(device.kind, h * w, num_groups, d) else None
        width = jnp.dtype(dtype).itemsize
        if n == 0 or not gpu_split.supports(device.kind, h * w, num_groups, d, width):
            return None
        return spec("gpu_split", relu=relu, **gpu_split.spec_fields(n, h * w, d, width, device.kind))
    # In double precision Python's integers are of 64 bits, which Pallas' TPU kernels do not mix with their own.
    if in_double_precision():
        return None
    memory = VMEM.get(device.kind, 0)
    kernel, tile = _tpu_kernel(n, (h, w), c, num_groups, jnp.dtype(dtype).itemsize, memory, has_mask)
    if kernel is None:
        return None
    columns = w if kernel in LAYOUTS and LAYOUTS[kernel].takes_mask else 0
    return spec(kernel, tile=tile, columns=columns, memory=memory)


def missing_because(x: jax.Array, num_groups: int, num_iterations: int, device: DeviceKind) -> str | None:
    """How to install a kernel for a call that has none, as a sentence, or None. The first time, it is logged, too."""
    if x.ndim != 4 or x.dtype.name not in _DTYPES or not supports_vjp(num_iterations) or gpu_triton.serves(device.kind):
        return None
    sizes = x.shape[1] * x.shape[2], num_groups, x.shape[3] // num_groups, x.dtype.itemsize
    if not gpu_split.would_support(device.kind, *sizes) or gpu_split.supports(device.kind, *sizes):
        return None
    text = f"The kernels for {device.kind} need jax_triton, on Python 3.11: pip install 'gw_jax[jax-triton]'."
    _log_once(f"Group Whitening runs in plain XLA. {text}")
    return text


def has_kernels(device: DeviceKind) -> bool:
    """Whether any input has a kernel on a kind of device, with the installed JAX."""
    on_gpu = gpu_triton.supports(device.kind, 1 << 10, 64, 1) or gpu_split.supports(device.kind, 1 << 10, 64, 1, 2)
    fits = on_gpu if device.platform == "gpu" else device.kind in VMEM
    return fits and no_kernels_because() is None


def fills_the_device(spec: KernelSpec, num_samples: int) -> bool:
    """Whether a kernel for ``num_samples`` on all devices keeps all of a device busy."""
    devices = 1 if spec.sharding is None else spec.sharding.num_devices
    return spec.kernel != "gpu_triton" or num_samples // devices >= gpu_triton.FEWEST_SAMPLES


def _tpu_kernel(
    n: int, spatial: tuple[int, int], c: int, num_groups: int, width: int, memory: int, has_mask: bool
) -> tuple[KernelName | None, int]:
    """The TPU kernel for ``n`` samples per device of values of ``width`` bytes, and its ``tile``."""
    # Matrices between more than 1,024 channels take minutes to compile; a v4 has no room for those between more than 512.
    most = 1024 if memory > SMALL_MEMORY else 512 if num_groups <= LANES else LANES
    if c > most:
        return None, 0
    # The largest kernel has four matrices between channels.
    needed = spatial[0] * spatial[1] * tpu_resident.SAMPLES * c * BYTES_PER_VALUE[width] + 4 * 4 * c * c
    fits_whole = memory > SMALL_MEMORY and needed <= memory
    if c % LANES == 0 and n % tpu_resident.SAMPLES == 0 and fits_whole and not has_mask:
        return "tpu_resident", 0
    for kernel, layout in LAYOUTS.items():
        if has_mask and not layout.takes_mask:
            continue
        tile = tpu_tiled.tile_positions(kernel, spatial, c, num_groups, width, memory) if layout.supports(n, c) else 0
        if tile:
            return kernel, tile
    return None, 0


def kernel_whiten(
    x: jax.Array,
    spec: KernelSpec,
    scale: jax.Array | None,
    bias: jax.Array | None,
    definition: Definition,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Group Whitening by Newton iteration, see :func:`gw_jax.group_whiten`, and the ReLU after it if ``spec`` says so.

    There is no forward-mode derivative. Where it is lowered for another platform than that of the kernel, the definition
    runs instead, and is differentiated by JAX.

    Args:
        x: ``[n, h, w, c]``.
        spec: what :func:`choose_kernel` returned for ``x``.
        scale: ``[c]``, or None.
        bias: ``[c]``, or None.
        definition: the same function in plain JAX.
        mask: ``[n, h, w]``, true where a position counts, or None.

    Returns:
        An array of the shape and type of ``x``.
    """
    if spec.takes_mask and mask is None:
        mask = full_mask(x)
    return whiten_samples(x, *affine_per_sample(x, scale, bias), mask, spec, definition)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def whiten_samples(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, spec: KernelSpec, definition: Definition
) -> jax.Array:
    """:func:`kernel_whiten` with scale and bias per sample, ``[n, c]``, and a mask if the kernel takes one."""
    return _run("forward", spec, definition, x, scale, bias, *_if_given(mask))[0]


def _if_given(mask: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if mask is None else (mask,)


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, spec: KernelSpec, definition: Definition
) -> tuple[jax.Array, Any]:
    y, *saved = _run("forward", spec, definition, x, scale, bias, *_if_given(mask))
    # A convolution after the ReLU keeps the same array for its own derivative.
    return y, (x, scale, *([y] if spec.relu else []), *saved, *_if_given(mask))


def _backward(spec: KernelSpec, definition: Definition, residuals: Any, dy: jax.Array) -> tuple[jax.Array | None, ...]:
    x, scale, *saved = residuals
    return (*_run("backward", spec, definition, x, dy, scale, *saved), None)


whiten_samples.defvjp(_forward, _backward)


def _run(direction: Literal["forward", "backward"], spec: KernelSpec, definition: Definition, *arrays: jax.Array) -> Any:
    """A kernel under ``jax.vmap``, on every device for its samples."""
    run = functools.partial(_kernel_or_definition, direction, spec, definition)
    return _vmap_as_samples(_shard_mapped(run, spec.sharding))(*arrays)


def _vmap_as_samples(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, for which an axis of ``jax.vmap`` is more samples: samples do not depend on each other."""
    mapped = jax.custom_batching.custom_vmap(run)

    @mapped.def_vmap
    def _(size: int, batched: Sequence[bool], *arrays: jax.Array) -> Any:
        def merge(array: jax.Array, is_batched: bool) -> jax.Array:
            array = array if is_batched else jnp.broadcast_to(array[None], (size, *array.shape))
            return array.reshape(size * array.shape[1], *array.shape[2:])

        results = _vmap_as_samples(run)(*map(merge, arrays, batched))
        separate = jax.tree.map(lambda array: array.reshape(size, -1, *array.shape[1:]), results)
        return separate, jax.tree.map(lambda _: True, results)

    return mapped


def _shard_mapped(run: Callable[..., Any], sharding: BatchSharding | None) -> Callable[..., Any]:
    """``run`` on every device for its samples.

    XLA cannot shard a kernel by itself: it would gather the batch. ``custom_partitioning`` does not work in ahead-of-time
    compilation.
    """
    if sharding is None:
        return run
    samples = PartitionSpec(sharding.axes)
    return jax.shard_map(run, mesh=sharding.mesh, in_specs=samples, out_specs=samples, check_vma=False)


def _kernel_or_definition(
    direction: Literal["forward", "backward"], spec: KernelSpec, definition: Definition, *arrays: jax.Array
) -> Any:
    """The kernel where the program is lowered for its platform, else the definition."""

    def kernel(*arrays: jax.Array) -> Any:
        results = getattr(_MODULES[spec.kernel], direction)(spec, *arrays)
        # Kernels for TPUs return arrays with one axis for the positions. Without the barrier, XLA would move the following
        # operation, such as a ReLU, in front of the reshape to images, where it cannot fuse into the next convolution.
        return results if spec.kernel.startswith("gpu") else jax.lax.optimization_barrier(results)

    if spec.interpret:
        return kernel(*arrays)
    plain = functools.partial(_plain_forward if direction == "forward" else _plain_backward, spec, definition)
    platform = "cuda" if spec.kernel.startswith("gpu") else "tpu"
    return jax.lax.platform_dependent(*arrays, default=plain, **{platform: kernel})


def _plain_forward(
    spec: KernelSpec,
    definition: Definition,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    y = definition(spec, x, scale, bias, mask)
    # Of the types of what the kernels save; the plain backward pass does not read it.
    saved = getattr(_MODULES[spec.kernel], "saved", lambda spec, samples: ())(spec, x.shape[0])
    return (y, *(jnp.zeros_like(x, jnp.float32, shape=shape) for shape in saved))


def _plain_backward(
    spec: KernelSpec, definition: Definition, x: jax.Array, dy: jax.Array, scale: jax.Array, *saved: jax.Array
) -> tuple[jax.Array, ...]:
    if spec.relu:
        dy, spec = jnp.where(saved[0] > 0, dy, 0), dataclasses.replace(spec, relu=False)
    mask = saved[-1] if spec.takes_mask else None

    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return definition(spec, x, scale, bias, mask)

    return jax.vjp(plain, x, scale, jnp.zeros_like(scale))[1](dy)
