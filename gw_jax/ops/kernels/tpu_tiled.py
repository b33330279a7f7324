"""Group Whitening for TPUs in tiles: for samples of which the chip does not hold enough at once.

A program visits the positions of some samples in tiles, twice. Forward, it reads x for the statistics, and again to write
y; backward, it reads x and dy for the gradients of covariance and scale, and again to write dx. Means and covariances are
kept for the backward pass, everything else is recomputed. The kernels are in :mod:`tpu_tiled_kernels`; which samples a
program has, and their rows, in :mod:`tpu_layouts`; the mathematics, in which the lanes of a row take the place of the
channels, in :mod:`tpu_math`.
"""

import enum
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.products import result_like
from gw_jax.ops.kernels.spec import KernelName, KernelSpec
from gw_jax.ops.kernels.tpu_layouts import LAYOUTS, SamplesInLanes, holds_channel_matrices, layout_of
from gw_jax.ops.kernels.tpu_math import LANES
from gw_jax.ops.kernels.tpu_tiled_kernels import apply_kernel, covariance_grad_kernel, input_grad_kernel, statistics_kernel

# A tile is no larger in the memory layout of XLA; a kernel holds up to six of them, and float32 copies of two.
BLOCK_BYTES = {"tpu_lane_tiles": 448 * 64 * LANES * 2, "tpu_sublane_tiles": 2 << 20}


def tile_positions(kernel: KernelName, positions: int, channels: int, num_groups: int, width: int, memory: int) -> int:
    """The number of positions per tile, or 0 if no tile fits.

    Args:
        kernel: the layout.
        positions: number of positions of a sample, of which the tile's divides it.
        channels: number of channels.
        num_groups: number of groups.
        width: bytes per value.
        memory: bytes on the chip.
    """
    layout = LAYOUTS[kernel]
    row = max(channels, LANES)
    values = layout.samples * (channels if layout is SamplesInLanes else row)
    # The largest kernel has two matrices per sample, six blocks of a tile, and two float32 copies. Where there is no memory
    # for matrices between channels, they are computed, four at a time.
    holds = holds_channel_matrices(channels, memory)
    matrices = 2 * layout.samples * row * (row if holds else num_groups) + (0 if holds else 4 * row * row)
    # What the compiler keeps of a sample has to fit beside a tile.
    left = 3 * memory // 4 - 4 * matrices
    most = min(BLOCK_BYTES[kernel] // (values * width), left // (values * (6 * width + 8)))
    unit = layout.unit(channels)
    fitting = [p for p in range(unit, min(positions, most) + 1, unit) if positions % p == 0]
    return max(fitting, default=0)


class Scratch(enum.Enum):
    """Scratch memory of a call, in float32."""

    TILE = enum.auto()  # A tile as rows.
    PRODUCTS = enum.auto()  # A sum of products per sample.
    MATRICES = enum.auto()  # A matrix between lanes per sample, where the chip has room for it.
    ROWS = enum.auto()  # A row per sample.


def _call(
    kernel: Any,
    spec: KernelSpec,
    images: Sequence[jax.Array],
    others: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[Scratch],
) -> Any:
    """Runs a kernel over blocks of samples and tiles."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    layout, of_image = layout_of(spec), images[0].shape
    holds = holds_channel_matrices(spec.channels, spec.memory)

    def block(shape: Sequence[int]) -> Any:
        return pl.BlockSpec((layout.samples, *shape[1:]), lambda i, t: (i,) + (0,) * (len(shape) - 1))

    def memory(kind: Scratch) -> Any:
        if kind is Scratch.TILE:
            return tuple(pltpu.VMEM(shape, jnp.float32) for shape in layout.scratch(spec.tile))
        columns = {Scratch.ROWS: (), Scratch.PRODUCTS: (layout.row if holds else spec.num_groups,)}.get(kind, (layout.row,))
        return pltpu.VMEM((layout.samples, *columns, layout.row), jnp.float32)

    first_is_image = kernel in (apply_kernel, input_grad_kernel)
    out_specs = [block(array.shape) for array in outputs]
    if first_is_image:
        out_specs[0] = layout.block(spec.tile)
    n = others[0].shape[0] if others else outputs[0].shape[0]
    inputs = sum(array.nbytes for array in (*images, *others))
    moved = inputs + sum(array.size * array.dtype.itemsize for array in outputs)
    products = 2 * len(images)
    return pl.pallas_call(
        functools.partial(kernel, spec=spec),
        grid=(n // layout.samples, spec.positions // spec.tile),
        in_specs=[layout.block(spec.tile) for _ in images] + [block(array.shape) for array in others],
        out_specs=out_specs,
        out_shape=list(outputs),
        scratch_shapes=[memory(kind) for kind in scratch if holds or kind is not Scratch.MATRICES],
        cost_estimate=pl.CostEstimate(
            flops=products * math.prod(of_image) * layout.row, bytes_accessed=moved, transcendentals=n
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=spec.memory, dimension_semantics=("parallel", "arbitrary")),
        interpret=spec.interpret,
    )(*images, *others)


def _of_samples(x: jax.Array, row: int, num_groups: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The types of a row and of a matrix between groups per sample."""
    square = (x.shape[0], num_groups, num_groups)
    return result_like(x, (x.shape[0], row), jnp.float32), result_like(x, square, jnp.float32)


def saved(spec: KernelSpec, samples: int) -> list[tuple[int, ...]]:
    """Shapes of what the forward pass saves, in float32: means and covariances."""
    return [(samples, layout_of(spec).row), (samples, spec.num_groups, spec.num_groups)]


def forward(spec: KernelSpec, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``; then means and covariances."""
    layout = layout_of(spec)
    stored = layout.to_layout(x)
    row, square = _of_samples(x, layout.row, spec.num_groups)
    mean, covariance, whitening = _call(
        statistics_kernel,
        spec,
        (stored,),
        (),
        (row, square, square),
        (Scratch.TILE, Scratch.PRODUCTS, Scratch.ROWS, Scratch.ROWS, Scratch.ROWS),
    )
    (y,) = _call(
        apply_kernel,
        spec,
        (stored,),
        (mean, whitening, layout.to_rows(scale), layout.to_rows(bias)),
        (result_like(x, stored.shape, x.dtype),),
        (Scratch.TILE, Scratch.MATRICES),
    )
    return layout.from_layout(y, x.shape), mean, covariance


def backward(
    spec: KernelSpec, x: jax.Array, dy: jax.Array, scale: jax.Array, mean: jax.Array, covariance: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of ``x``, scale and bias (per sample, ``[n, c]``) for the gradient ``dy`` of the output."""
    layout = layout_of(spec)
    stored, outer, factor = layout.to_layout(x), layout.to_layout(dy), layout.to_rows(scale)
    row, square = _of_samples(x, layout.row, spec.num_groups)
    whitening, through, outer_mean, dscale, dbias = _call(
        covariance_grad_kernel,
        spec,
        (stored, outer),
        (mean, covariance, factor),
        (square, square, row, row, row),
        (Scratch.TILE, Scratch.TILE, Scratch.PRODUCTS),
    )
    (dx,) = _call(
        input_grad_kernel,
        spec,
        (stored, outer),
        (mean, factor, whitening, through, outer_mean),
        (result_like(x, stored.shape, x.dtype),),
        (Scratch.TILE, Scratch.TILE, Scratch.MATRICES, Scratch.MATRICES),
    )
    return layout.from_layout(dx, x.shape), layout.sum_rows(dscale), layout.sum_rows(dbias)
