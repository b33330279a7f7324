"""Group Whitening for GPUs as six small kernels: three forward, three backward. They are Triton's, called by jax_triton.

Forward, ``statistics`` reads x for the sums of every sample, ``whitening_matrices`` iterates, ``apply`` reads x and writes
y: 3 passes over the input. Backward, ``gradient_sums`` reads x and dy, ``gradient_matrices`` iterates, ``input_gradient``
reads x and dy and writes dx: 5 passes. Besides, there are some ``g x g`` matrices per sample. Means and covariances are
kept for the backward pass. No kernel holds a sample, so that one source serves cards with little shared memory and few
registers, and a sample is divided among programs where there are few of them. :mod:`gpu_split_kernels` has the kernels.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.gpu_split_calls import call, is_installed
from gw_jax.ops.kernels.products import result_like
from gw_jax.ops.kernels.spec import KernelSpec

# Compute capabilities of cards for which the kernels compile, by what their names contain.
_CAPABILITIES = {
    r"\b(A100|A800|A30)\b": 80,
    r"\b(A10G?|A16|A40|RTX A\d+|GeForce RTX 30\d\d)\b": 86,
    r"\b(L4|L40S?|GeForce RTX 40\d\d|RTX \d+ (SFF )?Ada)\b": 89,
    r"\b(H100|H200|H800|GH200)\b": 90,
}
# A matrix product needs 16 rows and columns at least; more than 64 groups do not fit into the registers of an iteration.
GROUPS = (16, 32, 64)
# By the bytes of a value: rows of a tile, and tiles in flight. The largest kernel then takes 84 KiB of shared memory, of
# which an L4 has 99.
ROWS, STAGES = {2: 64, 4: 16}, {2: 3, 4: 2}
IMAGE_WARPS, MATRIX_WARPS = 4, {"bf16x3": 8, "tf32x3": 4}
# A sample is divided until there are so many programs, and no further than to so many rows. Every part of a sum writes a
# matrix.
PROGRAMS, ROWS_OF_SUM, ROWS_OF_PART = 256, 1024, 256


def capability(kind: str) -> int | None:
    """The compute capability of a card, times ten, or None where it is not known or too low."""
    return next((value for pattern, value in _CAPABILITIES.items() if re.search(pattern, kind)), None)


def would_support(kind: str, positions: int, num_groups: int, channels_per_group: int, width: int) -> bool:
    """Whether there are kernels for a device kind and samples of these sizes, if jax_triton is installed.

    Axes of a kernel are powers of two, and a position's channels have to fit into a tile. Offsets in a sample have 32 bits.
    """
    d = channels_per_group
    fits = 1 <= d <= ROWS[width] and d & (d - 1) == 0 and num_groups in GROUPS
    return fits and positions * num_groups * d < 1 << 31 and capability(kind) is not None


def supports(kind: str, positions: int, num_groups: int, channels_per_group: int, width: int) -> bool:
    """Whether there are kernels for a device kind and samples of these sizes, of values of ``width`` bytes."""
    return would_support(kind, positions, num_groups, channels_per_group, width) and is_installed()


def spec_fields(samples: int, positions: int, channels_per_group: int, width: int, kind: str) -> dict[str, Any]:
    """What a spec says about programs: positions of a tile, parts of a sample, and the card.

    Args:
        samples: on one device.
        positions: of a sample.
        channels_per_group: of it.
        width: bytes of a value.
        kind: of the device.
    """
    wanted, rows = -(-PROGRAMS // samples), positions * channels_per_group
    parts = tuple(min(wanted, max(1, rows // least)) for least in (ROWS_OF_SUM, ROWS_OF_PART))
    return {"tile": ROWS[width] // channels_per_group, "parts": parts, "capability": capability(kind)}


def saved(spec: KernelSpec, samples: int) -> list[tuple[int, ...]]:
    """Shapes of what the forward pass saves, in float32: means and covariances."""
    return [(samples, spec.num_groups), (samples, spec.num_groups, spec.num_groups)]


def forward(spec: KernelSpec, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``; then means and covariances."""
    n, g, (sum_parts, parts) = x.shape[0], spec.num_groups, spec.parts
    of, run, image = functools.partial(result_like, x, dtype=jnp.float32), _caller(spec, n), _image_sizes(spec)
    outputs = [of((n, sum_parts, g, g)), of((n, sum_parts, g)), of((n, g))]
    sums = run("statistics", (x,), (spec.positions,), outputs, parts=sum_parts, **image)
    matrices = _matrix_sizes(spec, x)
    outputs = [of((n, g, g)), of((n, g, g)), of((n, g))]
    whitening, covariance, centre = run("whitening_matrices", sums, (_count(spec), spec.epsilon), outputs, **matrices)
    arrays = x, whitening, centre, scale, bias
    outputs = [result_like(x, x.shape, x.dtype)]
    (y,) = run("apply", arrays, (spec.positions,), outputs, parts=parts, relu=spec.relu, **image)
    return y, centre, covariance


def backward(
    spec: KernelSpec, x: jax.Array, dy: jax.Array, scale: jax.Array, *kept: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of ``x``, scale and bias (per sample, ``[n, c]``) for the gradient ``dy`` of the output.

    ``kept`` are means and covariances, after the output where the spec has a ReLU.
    """
    *outputs, centre, covariance = kept
    y = outputs[0] if spec.relu else x  # Not read without a ReLU.
    n, g, c, (sum_parts, parts) = x.shape[0], spec.num_groups, spec.channels, spec.parts
    of, run, image = functools.partial(result_like, x, dtype=jnp.float32), _caller(spec, n), _image_sizes(spec)
    shapes = (n, sum_parts, g, g), (n, sum_parts, g), (n, sum_parts, g), (n, sum_parts, c)
    crossed, sums, inner_sums, dbias = run(
        "gradient_sums",
        (x, dy, y, scale, centre),
        (spec.positions,),
        [of(shape) for shape in shapes],
        parts=sum_parts,
        relu=spec.relu,
        **image,
    )
    matrices = _matrix_sizes(spec, x)
    square = result_like(x, (n, g, g), x.dtype)
    arrays = crossed, sums, inner_sums, covariance
    upper, through = run("gradient_matrices", arrays, (_count(spec), spec.epsilon), [square, square], **matrices)
    dx, dscale = run(
        "input_gradient",
        (x, dy, y, scale, centre, inner_sums, upper, through),
        (spec.positions, _count(spec)),
        [result_like(x, x.shape, x.dtype), of((n, parts, c))],
        parts=parts,
        sum_parts=sum_parts,
        relu=spec.relu,
        **image,
    )
    return dx, dscale.sum(1), dbias.sum(1)


def _count(spec: KernelSpec) -> float:
    """Observations of a group."""
    return float(spec.positions * spec.channels_per_group)


def _image_sizes(spec: KernelSpec) -> dict[str, int]:
    return {"g": spec.num_groups, "d": spec.channels_per_group, "tile": spec.tile}


def _matrix_sizes(spec: KernelSpec, x: jax.Array) -> dict[str, Any]:
    # As in gpu_triton: three products of bfloat16 parts where the input is off by more, which takes fewer registers.
    precision = "tf32x3" if x.dtype == jnp.float32 or spec.num_iterations > 7 else "bf16x3"
    return {"g": spec.num_groups, "parts": spec.parts[0], "iterations": spec.num_iterations, "precision": precision}


def _caller(spec: KernelSpec, samples: int) -> Callable[..., Any]:
    """Runs a kernel by name: arrays, numbers, the types of its outputs, and the sizes that it is compiled for."""

    def run(name: str, arrays: Any, numbers: Any, outputs: Any, **sizes: Any) -> Any:
        of_matrices = name.endswith("matrices")
        warps = MATRIX_WARPS[sizes["precision"]] if of_matrices else IMAGE_WARPS
        grid = (samples, 1) if of_matrices else (samples, sizes["parts"])
        stages = STAGES[arrays[0].dtype.itemsize]
        return call(name, arrays, numbers, outputs, grid=grid, warps=warps, stages=stages, spec=spec, sizes=sizes)

    return run
