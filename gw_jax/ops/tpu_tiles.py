"""Group Whitening for TPUs in tiles: for samples of which the chip does not hold enough at once.

A program goes through the positions of some samples in tiles, twice: forward it reads x for the statistics, then once more
to write y; backward it reads x and dy for the derivatives by covariance and scale, then once more to write dx.
:mod:`tpu_layouts` has which samples, and how a tile becomes rows of one sample; :mod:`tpu_math` the mathematics, with the
lanes of a row in the place of the channels where a row has several positions.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.checks import result_like
from gw_jax.ops.plan import SMALL_MEMORY, KernelName, Plan
from gw_jax.ops.tpu_layouts import Layout, SamplesInLanes, SamplesInSublanes
from gw_jax.ops.tpu_math import LANES, NT, TN, applied, dot, expanded, membership, newton, newton_derivative

# A tile as XLA keeps it is no larger; a kernel holds up to six of them, and float32 copies of two.
BLOCK_BYTES = {"tpu_lane_tiles": 448 * 64 * LANES * 2, "tpu_sublane_tiles": 2 << 20}


_LAYOUTS: dict[KernelName, Callable[[Plan], Layout]] = {
    "tpu_lane_tiles": SamplesInLanes,
    "tpu_sublane_tiles": SamplesInSublanes,
}


def _layout(plan: Plan) -> Layout:
    return _LAYOUTS[plan.kernel](plan)


def _first_and_last() -> tuple[Any, Any]:
    from jax.experimental import pallas as pl

    return pl.program_id(1) == 0, pl.program_id(1) == pl.num_programs(1) - 1


def _each_sample(do: Callable[[Any], None], plan: Plan) -> None:
    jax.lax.fori_loop(0, _layout(plan).samples, lambda sample, _: do(sample), None)


def _some_together(do: Callable[[list[Any]], None], plan: Plan) -> None:
    """For several samples at a time: their iterations run side by side."""
    together = 8 if plan.memory > SMALL_MEMORY else 2

    def body(number: Any, _: None) -> None:
        do([number * together + i for i in range(together)])

    jax.lax.fori_loop(0, _layout(plan).samples // together, body, None)


def _row(sample: Any) -> Any:
    from jax.experimental import pallas as pl

    return pl.ds(sample, 1)


def _statistics_kernel(
    x: Any, mean: Any, covariance: Any, whitening: Any, rows: Any, products: Any, *more: Any, plan: Plan
) -> None:
    from jax.experimental import pallas as pl

    sums, shift, rounded = more
    member, same = membership(plan, _layout(plan).row)
    tile = _layout(plan).tile(rows)
    first, last = _first_and_last()
    count = plan.positions * plan.channels_per_group

    @pl.when(first)
    def start() -> None:
        products[...] = jnp.zeros(products.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)
        rounded[...] = jnp.zeros(rounded.shape, jnp.float32)
        # The distance to one of the values is averaged, as in centre_groups: the group's first value of the sample.
        lane = jax.lax.broadcasted_iota(jnp.int32, member.shape, 0)
        is_first = (jax.lax.rem(lane, plan.channels_per_group) == 0) & (lane < plan.channels)
        shift[...] = dot(dot(_layout(plan).first(x), jnp.where(is_first, member, 0.0)), member, NT)

    tile.fill(x, shift[...], sums)

    def add(sample: Any) -> None:
        values = tile[sample].astype(x.dtype)
        products[sample] += dot(values, values, TN)
        # The mean that belongs to these products: where the first value is far from the rest, they are rounded alike.
        rounded[_row(sample), :] += values.astype(jnp.float32).sum(0, keepdims=True)

    _each_sample(add, plan)

    @pl.when(last)
    def end() -> None:
        mean[...] = shift[...] + dot(dot(sums[...], member) / count, member, NT)

        def finish(samples: list[Any]) -> None:
            covariances = []
            for sample in samples:
                of_groups = dot(rounded[_row(sample), :], member) / count
                between = dot(dot(member, products[sample] * same, TN), member) / count
                covariances.append(between - dot(of_groups, of_groups, TN))
                covariance[sample] = covariances[-1]
            found, _ = newton(jnp.stack(covariances), plan.num_iterations, plan.epsilon)
            for i, sample in enumerate(samples):
                whitening[sample] = found[i]

        _some_together(finish, plan)


def _apply_kernel(
    x: Any, mean: Any, whitening: Any, scale: Any, bias: Any, y: Any, rows: Any, matrices: Any, *, plan: Plan
) -> None:
    from jax.experimental import pallas as pl

    tile = _layout(plan).tile(rows)
    first, _ = _first_and_last()

    @pl.when(first)
    def start() -> None:
        member, same = membership(plan, _layout(plan).row)

        def expand(sample: Any) -> None:
            matrices[sample] = expanded(whitening[sample], member, same)

        _each_sample(expand, plan)

    tile.fill(x, mean[...])

    def apply(sample: Any) -> None:
        tile[sample] = applied(tile[sample].astype(x.dtype), matrices[sample])

    _each_sample(apply, plan)
    tile.empty(y, scale[...], bias[...])


def _cross_kernel(
    x: Any,
    dy: Any,
    mean: Any,
    covariance: Any,
    scale: Any,
    whitening: Any,
    through: Any,
    outer_mean: Any,
    dscale: Any,
    dbias: Any,
    rows: Any,
    cotangents: Any,
    products: Any,
    *,
    plan: Plan,
) -> None:
    from jax.experimental import pallas as pl

    member, same = membership(plan, _layout(plan).row)
    samples, outer = _layout(plan).tile(rows), _layout(plan).tile(cotangents)
    first, last = _first_and_last()
    count = plan.positions * plan.channels_per_group

    @pl.when(first)
    def start() -> None:
        products[...] = jnp.zeros(products.shape, jnp.float32)
        dbias[...] = jnp.zeros(dbias.shape, jnp.float32)

    samples.fill(x, mean[...])
    outer.fill(dy, None, dbias)

    def add(sample: Any) -> None:
        products[sample] += dot(samples[sample].astype(x.dtype), outer[sample].astype(x.dtype), TN)

    _each_sample(add, plan)

    @pl.when(last)
    def end() -> None:
        def finish(chosen: list[Any]) -> None:
            found, saved = newton(jnp.stack([covariance[sample] for sample in chosen]), plan.num_iterations, plan.epsilon)
            cotangent = []
            for i, sample in enumerate(chosen):
                matrix, factor = expanded(found[i], member, same), scale[_row(sample), :]
                between = products[sample] * same
                dscale[_row(sample), :] = jnp.sum(between * matrix, axis=0, keepdims=True)
                of_groups = dot(dbias[_row(sample), :] * factor, member) / count
                outer_mean[_row(sample), :] = dot(of_groups, member, NT)
                cotangent.append(dot(dot(member, between * factor, TN), member))
                whitening[sample] = found[i]
            derivative = newton_derivative(jnp.stack(cotangent), saved)
            for i, sample in enumerate(chosen):
                through[sample] = 2 * derivative[i] / count

        _some_together(finish, plan)


def _pullback_kernel(
    x: Any,
    dy: Any,
    mean: Any,
    scale: Any,
    whitening: Any,
    through: Any,
    outer_mean: Any,
    dx: Any,
    rows: Any,
    cotangents: Any,
    matrices: Any,
    derivatives: Any,
    *,
    plan: Plan,
) -> None:
    from jax.experimental import pallas as pl

    samples, outer = _layout(plan).tile(rows), _layout(plan).tile(cotangents)
    first, _ = _first_and_last()

    @pl.when(first)
    def start() -> None:
        member, same = membership(plan, _layout(plan).row)

        def expand(sample: Any) -> None:
            matrices[sample] = expanded(whitening[sample], member, same)
            derivatives[sample] = expanded(through[sample], member, same)

        _each_sample(expand, plan)

    samples.fill(x, mean[...])
    outer.fill(dy)

    def apply(sample: Any) -> None:
        # Rows are centred, so the derivative's mean over a group comes from dy alone. It goes before dy is rounded: what is
        # left would be the same at all positions.
        inner = outer[sample] * scale[_row(sample), :] - outer_mean[_row(sample), :]
        samples[sample] = applied(inner.astype(x.dtype), matrices[sample]) + applied(
            samples[sample].astype(x.dtype), derivatives[sample]
        )

    _each_sample(apply, plan)
    samples.empty(dx)


def tile_positions(kernel: KernelName, positions: int, channels: int, width: int, memory: int) -> int:
    """How many of all positions make a tile: a divisor, such that all fits into ``memory`` bytes; 0 for none.

    A value takes ``width`` bytes.
    """
    layout = SamplesInLanes if kernel == "tpu_lane_tiles" else SamplesInSublanes
    row = max(channels, LANES)
    values = layout.samples * (channels if layout is SamplesInLanes else row)
    # Matrices of every sample, two in the largest kernel; six blocks and two copies in float32 of a tile.
    left = memory - 2 * 4 * layout.samples * row * row
    most = min(BLOCK_BYTES[kernel] // (values * width), left // (values * (6 * width + 8)))
    unit = layout.unit(channels)
    fitting = [p for p in range(unit, min(positions, most) + 1, unit) if positions % p == 0]
    return max(fitting, default=0)


# Scratch memory of a call: a tile as rows, a matrix a sample, a row a sample.
ROWS, SQUARES, SQUARE = "rows", "squares", "square"


def _call(
    kernel: Any,
    plan: Plan,
    images: Sequence[jax.Array],
    others: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[str],
) -> Any:
    """Runs a kernel over blocks of samples and tiles."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    layout, of_image = _layout(plan), images[0].shape

    def block(shape: Sequence[int]) -> Any:
        return pl.BlockSpec((layout.samples, *shape[1:]), lambda i, t: (i,) + (0,) * (len(shape) - 1))

    def memory(kind: str) -> Any:
        if kind == ROWS:
            return tuple(pltpu.VMEM(shape, jnp.float32) for shape in layout.scratch(plan.tile))
        shape = (layout.samples,) + (layout.row,) * (2 if kind == SQUARES else 1)
        return pltpu.VMEM(shape, jnp.float32)

    first_is_image = kernel in (_apply_kernel, _pullback_kernel)
    out_specs = [block(array.shape) for array in outputs]
    if first_is_image:
        out_specs[0] = layout.block(plan.tile)
    n = others[0].shape[0] if others else outputs[0].shape[0]
    inputs = sum(array.nbytes for array in (*images, *others))
    moved = inputs + sum(array.size * array.dtype.itemsize for array in outputs)
    products = 2 * len(images)
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(n // layout.samples, plan.positions // plan.tile),
        in_specs=[layout.block(plan.tile) for _ in images] + [block(array.shape) for array in others],
        out_specs=out_specs,
        out_shape=list(outputs),
        scratch_shapes=[memory(kind) for kind in scratch],
        cost_estimate=pl.CostEstimate(
            flops=products * math.prod(of_image) * layout.row, bytes_accessed=moved, transcendentals=n
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=plan.memory, dimension_semantics=("parallel", "arbitrary")),
        interpret=plan.interpret,
    )(*images, *others)


def _of_samples(x: jax.Array, row: int, num_groups: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """A row and a matrix between groups for every sample."""
    square = (x.shape[0], num_groups, num_groups)
    return result_like(x, (x.shape[0], row), jnp.float32), result_like(x, square, jnp.float32)


def forward(plan: Plan, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``; and what :func:`backward` wants."""
    layout = _layout(plan)
    stored = layout.stored(x)
    row, square = _of_samples(x, layout.row, plan.num_groups)
    mean, covariance, whitening = _call(
        _statistics_kernel,
        plan,
        (stored,),
        (),
        (row, square, square),
        (ROWS, SQUARES, SQUARE, SQUARE, SQUARE),
    )
    (y,) = _call(
        _apply_kernel,
        plan,
        (stored,),
        (mean, whitening, layout.widened(scale), layout.widened(bias)),
        (result_like(x, stored.shape, x.dtype),),
        (ROWS, SQUARES),
    )
    return layout.images(y, x.shape), mean, covariance


def backward(
    plan: Plan, x: jax.Array, dy: jax.Array, scale: jax.Array, mean: jax.Array, covariance: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivatives by ``x``, scale and bias (of every sample, ``[n, c]``) from that by the output, ``dy``."""
    layout = _layout(plan)
    stored, outer, factor = layout.stored(x), layout.stored(dy), layout.widened(scale)
    row, square = _of_samples(x, layout.row, plan.num_groups)
    whitening, through, outer_mean, dscale, dbias = _call(
        _cross_kernel,
        plan,
        (stored, outer),
        (mean, covariance, factor),
        (square, square, row, row, row),
        (ROWS, ROWS, SQUARES),
    )
    (dx,) = _call(
        _pullback_kernel,
        plan,
        (stored, outer),
        (mean, factor, whitening, through, outer_mean),
        (result_like(x, stored.shape, x.dtype),),
        (ROWS, ROWS, SQUARES, SQUARES),
    )
    return layout.images(dx, x.shape), layout.narrowed(dscale), layout.narrowed(dbias)
