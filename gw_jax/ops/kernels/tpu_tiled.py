"""Group Whitening for TPUs in tiles: for samples of which the chip does not hold enough at once.

A program visits the positions of some samples in tiles, twice. Forward, it reads x for the statistics, and again to write
y; backward, it reads x and dy for the gradients of covariance and scale, and again to write dx. Means and covariances are
kept for the backward pass, everything else is recomputed. The kernels are in :mod:`tpu_tiled_kernels`; which samples a
program has, and their rows, in :mod:`tpu_layouts`; the mathematics, in which the lanes of a row take the place of the
channels, in :mod:`tpu_math`.
"""

import enum
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.products import result_like
from gw_jax.ops.kernels.spec import SMALL_MEMORY, KernelName, KernelSpec
from gw_jax.ops.kernels.tpu_batch_layouts import SamplesInLanes
from gw_jax.ops.kernels.tpu_image_layouts import ColumnsInLanes
from gw_jax.ops.kernels.tpu_layouts import LAYOUTS, Layout, MaskedLayout, layout_of
from gw_jax.ops.kernels.tpu_math import LANES
from gw_jax.ops.kernels.tpu_rows import Valid, holds_channel_matrices
from gw_jax.ops.kernels.tpu_tiled_kernels import apply_kernel, covariance_grad_kernel, input_grad_kernel, statistics_kernel

# A tile is no larger in the memory layout of XLA; a kernel holds up to six of them, and float32 copies of two.
BLOCK_BYTES = {"tpu_lane_tiles": 448 * 64 * LANES * 2, "tpu_sublane_tiles": 2 << 20}
# The same for one sample. Programs for smaller ones would have little to do between their iterations.
MASKED_BLOCK_BYTES, FEWEST_POSITIONS = 512 << 10, 1 << 10


def tile_positions(
    kernel: KernelName, spatial: tuple[int, int], channels: int, num_groups: int, width: int, memory: int
) -> int:
    """``KernelSpec.tile``, or 0 if no tile fits.

    Args:
        kernel: the layout.
        spatial: rows and columns of an image.
        channels: number of channels.
        num_groups: number of groups.
        width: bytes per value.
        memory: bytes on the chip.
    """
    layout, positions = LAYOUTS[kernel], spatial[0] * spatial[1]
    row = max(channels, LANES)
    values = layout.samples * (channels if layout is SamplesInLanes else row)
    # The largest kernel has two matrices per sample, six blocks of a tile, and two float32 copies. Where there is no memory
    # for matrices between channels, they are computed, four at a time.
    holds = holds_channel_matrices(channels, memory)
    matrices = 2 * layout.samples * row * (row if holds else num_groups) + (0 if holds else 4 * row * row)
    # What the compiler keeps of a sample has to fit beside a tile.
    left = 3 * memory // 4 - 4 * matrices
    unit = layout.unit(channels)
    if issubclass(layout, MaskedLayout):
        # The iterations of larger matrices take minutes to compile.
        return _masked_tile(layout, spatial, channels, width, memory, left) if num_groups <= LANES else 0
    most = min(BLOCK_BYTES[kernel] // (values * width), left // (values * (6 * width + 8)))
    fitting = [p for p in range(unit, min(positions, most) + 1, unit) if positions % p == 0]
    return max(fitting, default=0)


def _masked_tile(
    layout: type[MaskedLayout], spatial: tuple[int, int], channels: int, width: int, memory: int, left: int
) -> int:
    """:func:`tile_positions` in rows of the image, of which the last tile may have more than there are."""
    (h, w), unit = spatial, layout.unit(channels)
    if memory <= SMALL_MEMORY or h * w < FEWEST_POSITIONS:
        return 0
    # XLA fills the lanes by columns or by channels, whichever leave fewer of them empty.
    if layout is ColumnsInLanes and layout.values(w, channels) > w * LANES:
        return 0
    values = layout.values(w, channels)
    tile = max(min(h, MASKED_BLOCK_BYTES // (values * width)) // unit * unit, unit)
    return tile if left >= tile * values * (6 * width + 8) else 0


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
    valid: Sequence[jax.Array],
) -> Any:
    """Runs a kernel over blocks of samples and tiles; ``valid`` has what :func:`_valid` returned."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    layout, of_image = layout_of(spec), images[0].shape
    holds = holds_channel_matrices(spec.channels, spec.memory)

    def block(shape: Sequence[int]) -> Any:
        if shape[1:] == (1, layout.row):
            return pl.BlockSpec((None, 1, layout.row), lambda i, t: (i, 0, 0))
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

    def run(*references: Any) -> None:
        masking, rest = references[: len(valid)], references[len(valid) :]
        kernel(Valid(*masking) if masking else None, *rest, spec=spec)

    of_mask = []
    if isinstance(layout, MaskedLayout):
        of_mask = [layout.mask_block(spec.tile), *(block(array.shape) for array in valid[1:])]
    n = others[0].shape[0] if others else outputs[0].shape[0]
    inputs = sum(array.nbytes for array in (*valid, *images, *others))
    moved = inputs + sum(array.size * array.dtype.itemsize for array in outputs)
    products = 2 * len(images)
    return pl.pallas_call(
        run,
        grid=(n // layout.samples, -(-spec.positions // (spec.tile * (spec.columns or 1)))),
        in_specs=[
            *of_mask,
            *[layout.block(spec.tile) for _ in images],
            *[block(array.shape) for array in others],
        ],
        out_specs=out_specs,
        out_shape=list(outputs),
        scratch_shapes=[memory(kind) for kind in scratch if holds or kind is not Scratch.MATRICES],
        cost_estimate=pl.CostEstimate(
            flops=products * math.prod(of_image) * layout.row, bytes_accessed=moved, transcendentals=n
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=spec.memory, dimension_semantics=("parallel", "arbitrary")),
        interpret=spec.interpret,
    )(*valid, *images, *others)


def _valid(layout: Layout, spec: KernelSpec, stored: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, ...]:
    """What a kernel needs of a mask ``[n, h, w]``, in the order of :class:`Valid`; nothing where there is none.

    ``stored`` is the input in the layout.
    """
    if mask is None or not isinstance(layout, MaskedLayout):
        return ()
    mask = mask.astype(bool)
    flat = mask.reshape(mask.shape[0], -1)
    count = jnp.maximum(flat.sum(1, dtype=jnp.float32) * spec.channels_per_group, 1)
    at_first = jax.vmap(layout.values_at)(stored, jnp.argmax(flat, 1)).astype(jnp.float32)
    # Where nothing counts, the first position may hold NaN.
    first = layout.to_rows(jnp.where(flat.any(1)[:, None], at_first, 0))
    return layout.mask(mask, spec.tile), jnp.broadcast_to(count[:, None, None], first.shape), first


def saved(spec: KernelSpec, samples: int) -> list[tuple[int, ...]]:
    """Shapes of what the forward pass saves, in float32: means and covariances."""
    layout = layout_of(spec)
    # An axis of one sample can't be the second last of a block.
    row = (1, layout.row) if layout.samples == 1 else (layout.row,)
    return [(samples, *row), (samples, spec.num_groups, spec.num_groups)]


def _of_samples(spec: KernelSpec, x: jax.Array) -> list[jax.ShapeDtypeStruct]:
    """The types of a row and of a matrix between groups per sample."""
    return [result_like(x, shape, jnp.float32) for shape in saved(spec, x.shape[0])]


def forward(
    spec: KernelSpec, x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``; then means and covariances.

    ``mask`` ``[n, h, w]``, in layouts of one sample and no other.
    """
    layout = layout_of(spec)
    stored = layout.to_layout(x)
    valid = _valid(layout, spec, stored, mask)
    row, square = _of_samples(spec, x)
    mean, covariance, whitening = _call(
        statistics_kernel,
        spec,
        (stored,),
        (),
        (row, square, square),
        (Scratch.TILE, Scratch.PRODUCTS, Scratch.ROWS, Scratch.ROWS, Scratch.ROWS),
        valid,
    )
    (y,) = _call(
        apply_kernel,
        spec,
        (stored,),
        (mean, whitening, layout.to_rows(scale), layout.to_rows(bias)),
        (result_like(x, stored.shape, x.dtype),),
        (Scratch.TILE, Scratch.MATRICES),
        valid,
    )
    return layout.from_layout(y, x.shape), mean, covariance


def backward(
    spec: KernelSpec,
    x: jax.Array,
    dy: jax.Array,
    scale: jax.Array,
    mean: jax.Array,
    covariance: jax.Array,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of ``x``, scale and bias (per sample, ``[n, c]``) for the gradient ``dy`` of the output."""
    layout = layout_of(spec)
    stored, outer, factor = layout.to_layout(x), layout.to_layout(dy), layout.to_rows(scale)
    valid = _valid(layout, spec, stored, mask)
    row, square = _of_samples(spec, x)
    whitening, through, outer_mean, dscale, dbias = _call(
        covariance_grad_kernel,
        spec,
        (stored, outer),
        (mean, covariance, factor),
        (square, square, row, row, row),
        (Scratch.TILE, Scratch.TILE, Scratch.PRODUCTS),
        valid,
    )
    (dx,) = _call(
        input_grad_kernel,
        spec,
        (stored, outer),
        (mean, factor, whitening, through, outer_mean),
        (result_like(x, stored.shape, x.dtype),),
        (Scratch.TILE, Scratch.TILE, Scratch.MATRICES, Scratch.MATRICES),
        valid,
    )
    return layout.from_layout(dx, x.shape), layout.sum_rows(dscale), layout.sum_rows(dbias)
