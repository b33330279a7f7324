"""Kernels on inputs for tests, run by an interpreter, and their errors."""

import dataclasses
import functools
import importlib.util
import os
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax import group_whiten
from gw_jax.ops.group_whitening import kernel_definition
from gw_jax.ops.kernels import choose_kernel, gpu_split, kernel_whiten, placement
from gw_jax.ops.sharding import shard_batch_only
from gw_jax.versions import enable_x64, no_kernels_because

# Shape, groups, and positions of a tile where it is not what would be chosen. For TPUs, whole samples with 1, 2 and 4
# channels a group; tiles of samples in the lanes with 2 positions side by side, 1, and 4; tiles of samples in the sublanes
# with 64, 128 and 256 channels; the same on a v4, which holds no matrices between channels. For GPUs, several tiles, whole
# and in part; the same by small kernels, with a sample in several parts, some of them empty.
TPU, GPU = placement.DeviceKind("tpu", "TPU v5 lite"), placement.DeviceKind("gpu", "NVIDIA H200")
A100 = placement.DeviceKind("gpu", "NVIDIA A100-SXM4-40GB")
TPU_V4 = placement.DeviceKind("tpu", "TPU v4")
RELU = {"relu": True}
NEEDS_KERNELS = pytest.mark.skipif(no_kernels_because() is not None, reason=str(no_kernels_because()))
HAS_TRITON = importlib.util.find_spec("triton") is not None
NEEDS_TRITON = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed: pip install 'gw_jax[jax-triton]'")
KERNELS = {
    "samples, 2 channels per group": ((8, 4, 4, 128), 64, None),
    "samples, 4 channels per group": ((16, 3, 3, 256), 64, None),
    "samples, 1 channel per group": ((8, 2, 5, 128), 128, None),
    "lane tiles, 1 channel per group": ((128, 8, 6, 64), 64, 16),
    "lane tiles, 2 channels per group": ((128, 4, 4, 64), 32, None),
    "lane tiles, 4 positions per row": ((128, 8, 8, 32), 16, 32),
    "sublane tiles, 1 channel per group": ((16, 6, 8, 64), 64, 16),
    "sublane tiles, 2 channels per group": ((8, 5, 4, 128), 64, 5),
    "sublane tiles, 4 channels per group": ((8, 4, 4, 256), 64, 8),
    "column tiles, 1 channel per group": ((3, 20, 100, 64), 64, 8),
    "column tiles, 2 channels per group": ((3, 9, 130, 32), 16, None),
    "position tiles, 1 channel per group": ((3, 20, 60, 64), 64, 8),
    "position tiles, 4 channels per group": ((3, 9, 130, 128), 32, None),
    "v4, 2 channels per group": ((8, 4, 3, 256), 128, 6),
    "v4, 8 channels per group": ((16, 3, 3, 512), 64, 3),
    "GPU, 1 channel per group": ((6, 13, 12, 64), 64, None),
    "GPU, 2 channels per group": ((6, 16, 8, 32), 16, None),
    "GPU, 8 channels per group": ((6, 7, 7, 128), 16, None),
    "GPU, fewer positions than a tile could have": ((6, 7, 7, 16), 16, None),
    "split, 1 channel per group": ((4, 13, 12, 64), 64, (64, 2, 3)),
    "split, 2 channels per group": ((3, 8, 9, 32), 16, None),
    "split, 8 channels per group": ((3, 7, 7, 128), 16, (8, 4, 5)),
}


def make_input(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal(shape) @ rng.standard_normal((shape[-1], shape[-1])) / shape[-1] ** 0.5 + 0.5
    scale, bias = rng.standard_normal((2, shape[-1]))
    return jnp.asarray(mixed, dtype), jnp.asarray(scale + 1, jnp.float32), jnp.asarray(bias, jnp.float32)


def device_of(name):
    """The device of a kernel of KERNELS."""
    return {"GPU,": GPU, "v4,": TPU_V4, "split,": A100}.get(name.split()[0], TPU)


def case(name):
    """Shape, groups, and the function that runs the kernel."""
    shape, num_groups, _ = KERNELS[name]
    skip_without_triton(name)
    return shape, functools.partial(kernel, num_groups=num_groups, device=device_of(name), change=changes(name))


def skip_without_triton(name):
    if name.startswith("split") and not HAS_TRITON:
        pytest.skip("Triton is not installed: pip install 'gw_jax[jax-triton]'")
    if name.startswith("split") and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles here, and does not interpret")


def changes(name):
    """The fields of the kernel's sizes that are not what would be chosen."""
    tile, device = KERNELS[name][2], device_of(name)
    if tile is None:
        return {}
    if device is A100:
        return {"tile": tile[0], "parts": tile[1:]}
    layout = name.split()[0].removesuffix("s")
    return {"tile": tile} | ({"kernel": f"tpu_{layout}_tiles"} if device is TPU else {})


def spec_for(shape, dtype, num_groups, device, *, num_iterations=5, epsilon=0.0, sharding=None, **options):
    """What would be chosen for an input."""
    # An interpreter needs Triton, but neither JAX for CUDA nor jax_triton.
    with mock.patch.object(gpu_split, "is_installed", return_value=device == A100):
        return choose_kernel(shape, dtype, num_groups, num_iterations, epsilon, device, sharding, **options)


def kernel(x, scale, bias, mask=None, *, num_groups, device, num_iterations=5, epsilon=0.0, interpret=True, change=None):
    x, mask = shard_batch_only(x, mask)
    options = {"num_iterations": num_iterations, "epsilon": epsilon, "has_mask": mask is not None}
    spec = spec_for(x.shape, x.dtype, num_groups, device, sharding=placement.batch_sharding(x), **options)
    assert spec is not None
    spec = dataclasses.replace(spec, interpret=interpret, **(change or {}))
    return kernel_whiten(x, spec, scale, bias, kernel_definition, mask)


def compiling_for(device):
    return placement.compiling_for(SimpleNamespace(platform=device.platform, device_kind=device.kind))


def values_and_gradients(function, x, scale, bias, cotangent_of=None):
    """Output and gradients as float64.

    ``cotangent_of``: the shape of a larger input, and which part of it ``x`` is.
    """
    shape, part = (x.shape, ...) if cotangent_of is None else cotangent_of
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(shape)[part], x.dtype)

    @jax.jit
    def both(x, scale, bias):
        y, pullback = jax.vjp(function, x, scale, bias)
        return y, *pullback(cotangent.astype(y.dtype))

    return jax.tree.map(lambda a: np.asarray(a, np.float64), both(x, scale, bias))


def in_float64(x, scale, bias, **options):
    with enable_x64():
        arguments = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias))
        plain = functools.partial(group_whiten, implementation="plain", **options)
        return values_and_gradients(lambda x, s, b: plain(x, scale=s, bias=b), *arguments)


def relative_errors(found, truth):
    pairs = ((np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(found, truth, strict=True))
    # max() of Python passes over a NaN that is not the first.
    return [np.nan_to_num(np.abs(a - b).max() / np.abs(b).max(), nan=np.inf) for a, b in pairs]
