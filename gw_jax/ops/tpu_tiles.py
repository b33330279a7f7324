"""Group Whitening for TPUs in tiles: for few channels and many samples, which XLA then keeps in the lanes.

XLA keeps images with less than 128 channels and 128 samples or more as ``[h, w, c, n]`` in memory, samples in the lanes. A
program takes 128 samples and goes through their positions in tiles, twice: forward it reads x for the statistics, then once
more to write y; backward it reads x and dy for the derivatives by covariance and scale, then once more to write dx. In a
tile, ``q = 128 / c`` positions side by side make a square block that is transposed on the chip, so that a row holds ``q``
positions of a sample with all channels in 128 lanes. The rows of one sample are every 128th row then, which a strided load
picks. :mod:`tpu_math` has the mathematics, with the lanes of a row in the place of the channels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.plan import Plan
from gw_jax.ops.tpu_math import LANES, NT, TN, applied, dot, expanded, membership, newton, newton_derivative

TILE_BYTES = 448 * 64 * LANES * 2  # Of which a kernel holds up to six, and float32 copies of two.
TOGETHER = 8  # Samples whose Newton iterations run side by side.


class _Tile:
    """A tile ``[p, c, 128]`` as float32 rows by sample: row ``128 j + n`` of ``rows`` is the ``j``-th of sample ``n``."""

    def __init__(self, rows: Any, channels: int):
        self._rows, self._channels = rows, channels
        self.count = rows.shape[0] // LANES

    def _each(self, do: Callable[[Any, Any, Any], None]) -> None:
        from jax.experimental import pallas as pl

        side_by_side = LANES // self._channels

        def body(j: Any, _: None) -> None:
            do(pl.ds(j * LANES, LANES), pl.ds(j * side_by_side, side_by_side), j)

        jax.lax.fori_loop(0, self.count, body, None)

    def fill(self, block: Any, shift: jax.Array | None = None, sums: Any = None) -> None:
        """Takes a block, less ``shift`` ``[128, 128]``; adds the rows of every sample to ``sums`` ``[128, 128]``."""

        def one(rows: Any, positions: Any, j: Any) -> None:
            del j
            values = block[positions].astype(jnp.float32).reshape(LANES, LANES).T
            values = values if shift is None else values - shift
            self._rows[rows, :] = values
            if sums is not None:
                sums[...] += values

        self._each(one)

    def empty(self, block: Any, finish: Callable[[jax.Array], jax.Array]) -> None:
        """Gives ``finish`` of the rows back to a block."""

        def one(rows: Any, positions: Any, j: Any) -> None:
            del j
            values = finish(self._rows[rows, :]).T.reshape(LANES // self._channels, self._channels, LANES)
            block[positions] = values.astype(block.dtype)

        self._each(one)

    def _of(self, sample: Any) -> Any:
        from jax.experimental import pallas as pl

        return pl.ds(sample, self.count, stride=LANES)

    def __getitem__(self, sample: Any) -> jax.Array:
        return self._rows[self._of(sample), :]

    def __setitem__(self, sample: Any, values: jax.Array) -> None:
        self._rows[self._of(sample), :] = values


def _first_and_last() -> tuple[Any, Any]:
    from jax.experimental import pallas as pl

    return pl.program_id(1) == 0, pl.program_id(1) == pl.num_programs(1) - 1


def _each_sample(do: Callable[[Any], None]) -> None:
    jax.lax.fori_loop(0, LANES, lambda sample, _: do(sample), None)


def _some_together(do: Callable[[list[Any]], None]) -> None:
    def body(number: Any, _: None) -> None:
        do([number * TOGETHER + i for i in range(TOGETHER)])

    jax.lax.fori_loop(0, LANES // TOGETHER, body, None)


def _row(sample: Any) -> Any:
    from jax.experimental import pallas as pl

    return pl.ds(sample, 1)


def _statistics_kernel(
    x: Any, mean: Any, covariance: Any, whitening: Any, rows: Any, products: Any, *more: Any, plan: Plan
) -> None:
    from jax.experimental import pallas as pl

    sums, shift = more
    member, same = membership(plan)
    tile = _Tile(rows, plan.channels)
    first, last = _first_and_last()
    count = plan.positions * plan.channels_per_group

    @pl.when(first)
    def start() -> None:
        products[...] = jnp.zeros(products.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)
        # The distance to one of the values is averaged, as in centre_groups: the group's first value of the sample.
        lane = jax.lax.broadcasted_iota(jnp.int32, member.shape, 0)
        is_first = (jax.lax.rem(lane, plan.channels_per_group) == 0) & (lane < plan.channels)
        values = x[: LANES // plan.channels].astype(jnp.float32).reshape(LANES, LANES).T
        shift[...] = dot(dot(values, jnp.where(is_first, member, 0.0)), member, NT)

    tile.fill(x, shift[...], sums)

    def add(sample: Any) -> None:
        values = tile[sample].astype(x.dtype)
        products[sample] += dot(values, values, TN)

    _each_sample(add)

    @pl.when(last)
    def end() -> None:
        means = dot(sums[...], member) / count
        sums[:, : plan.num_groups] = means
        mean[...] = shift[...] + dot(means, member, NT)

        def finish(samples: list[Any]) -> None:
            covariances = []
            for sample in samples:
                of_groups = sums[_row(sample), : plan.num_groups]
                between = dot(dot(member, products[sample] * same, TN), member) / count
                covariances.append(between - dot(of_groups, of_groups, TN))
                covariance[sample] = covariances[-1]
            found, _ = newton(jnp.stack(covariances), plan.num_iterations, plan.epsilon)
            for i, sample in enumerate(samples):
                whitening[sample] = found[i]

        _some_together(finish)


def _apply_kernel(
    x: Any, mean: Any, whitening: Any, scale: Any, bias: Any, y: Any, rows: Any, matrices: Any, *, plan: Plan
) -> None:
    from jax.experimental import pallas as pl

    tile = _Tile(rows, plan.channels)
    first, _ = _first_and_last()

    @pl.when(first)
    def start() -> None:
        member, same = membership(plan)

        def expand(sample: Any) -> None:
            matrices[sample] = expanded(whitening[sample], member, same)

        _each_sample(expand)

    tile.fill(x, mean[...])

    def apply(sample: Any) -> None:
        tile[sample] = applied(tile[sample].astype(x.dtype), matrices[sample])

    _each_sample(apply)
    factor, offset = scale[...], bias[...]
    tile.empty(y, lambda values: values * factor + offset)


def _cross_kernel(
    x: Any,
    dy: Any,
    mean: Any,
    covariance: Any,
    scale: Any,
    whitening: Any,
    through: Any,
    correction: Any,
    dscale: Any,
    dbias: Any,
    rows: Any,
    cotangents: Any,
    products: Any,
    *,
    plan: Plan,
) -> None:
    from jax.experimental import pallas as pl

    member, same = membership(plan)
    samples, outer = _Tile(rows, plan.channels), _Tile(cotangents, plan.channels)
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

    _each_sample(add)

    @pl.when(last)
    def end() -> None:
        def finish(chosen: list[Any]) -> None:
            found, saved = newton(jnp.stack([covariance[sample] for sample in chosen]), plan.num_iterations, plan.epsilon)
            cotangent = []
            for i, sample in enumerate(chosen):
                matrix, factor = expanded(found[i], member, same), scale[_row(sample), :]
                between = products[sample] * same
                dscale[_row(sample), :] = jnp.sum(between * matrix, axis=0, keepdims=True)
                scaled = dbias[_row(sample), :] * factor
                of_groups = dot(dot(scaled, matrix), member) / count
                correction[_row(sample), :] = dot(of_groups, member, NT)
                cotangent.append(dot(dot(member, between * factor, TN), member))
                whitening[sample] = found[i]
            derivative = newton_derivative(jnp.stack(cotangent), saved)
            for i, sample in enumerate(chosen):
                through[sample] = 2 * derivative[i] / count

        _some_together(finish)


def _pullback_kernel(
    x: Any,
    dy: Any,
    mean: Any,
    scale: Any,
    whitening: Any,
    through: Any,
    correction: Any,
    dx: Any,
    rows: Any,
    cotangents: Any,
    matrices: Any,
    derivatives: Any,
    *,
    plan: Plan,
) -> None:
    from jax.experimental import pallas as pl

    samples, outer = _Tile(rows, plan.channels), _Tile(cotangents, plan.channels)
    first, _ = _first_and_last()

    @pl.when(first)
    def start() -> None:
        member, same = membership(plan)

        def expand(sample: Any) -> None:
            matrices[sample] = expanded(whitening[sample], member, same)
            derivatives[sample] = expanded(through[sample], member, same)

        _each_sample(expand)

    samples.fill(x, mean[...])
    outer.fill(dy)

    def apply(sample: Any) -> None:
        scaled = outer[sample] * scale[_row(sample), :]
        samples[sample] = applied(scaled.astype(x.dtype), matrices[sample]) + applied(
            samples[sample].astype(x.dtype), derivatives[sample]
        )

    _each_sample(apply)
    offset = correction[...]
    samples.empty(dx, lambda values: values - offset)


def tile_positions(positions: int, channels: int, width: int) -> int:
    """How many of all positions make a tile: a divisor that fills whole blocks and fits on the chip; 0 for none.

    A value takes ``width`` bytes.
    """
    unit, most = 8 * (LANES // channels), TILE_BYTES // (channels * LANES * width)
    fitting = [p for p in range(unit, min(positions, most) + 1, unit) if positions % p == 0]
    return max(fitting, default=0)


def _call(
    kernel: Any, plan: Plan, inputs: Sequence[jax.Array], outputs: Sequence[Any], scratch: Sequence[tuple[int, ...]]
) -> Any:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    tile = tile_positions(plan.positions, plan.channels, inputs[0].dtype.itemsize)

    def block(shape: Sequence[int]) -> Any:
        if len(shape) == 3 and shape[0] == plan.positions and shape[1] == plan.channels:
            return pl.BlockSpec((tile, plan.channels, LANES), lambda i, t: (t, 0, i))
        if len(shape) == 3:
            return pl.BlockSpec((LANES, *shape[1:]), lambda i, t: (i, 0, 0))
        return pl.BlockSpec((LANES, shape[1]), lambda i, t: (i, 0))

    n = inputs[0].shape[2]
    rows = tile * plan.channels
    moved = sum(array.size * jnp.dtype(array.dtype).itemsize for array in (*inputs, *outputs))
    products = {1: 2, 2: 4}[sum(shape == (0,) for shape in scratch)]
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(n // LANES, plan.positions // tile),
        in_specs=[block(array.shape) for array in inputs],
        out_specs=[block(array.shape) for array in outputs],
        out_shape=list(outputs),
        scratch_shapes=[pltpu.VMEM((rows, LANES) if shape == (0,) else shape, jnp.float32) for shape in scratch],
        cost_estimate=pl.CostEstimate(
            flops=n * products * plan.positions * plan.channels * LANES, bytes_accessed=moved, transcendentals=n
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=110 << 20, dimension_semantics=("parallel", "arbitrary")),
        interpret=plan.interpret,
    )(*inputs)


# Scratch memory of a call: a tile as rows, a matrix a sample, a row a sample.
ROWS, SQUARES, SQUARE = (0,), (LANES, LANES, LANES), (LANES, LANES)


def _as_stored(x: jax.Array) -> jax.Array:
    """``[n, h, w, c]`` as ``[h w, c, n]``, which is how XLA lays it out."""
    n, h, w, c = x.shape
    return x.transpose(1, 2, 3, 0).reshape(h * w, c, n)


def _as_images(stored: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Undoes :func:`_as_stored`."""
    n, h, w, c = shape
    return stored.reshape(h, w, c, n).transpose(3, 0, 1, 2)


def _side_by_side(parameter: jax.Array) -> jax.Array:
    """``[n, c]`` for rows of several positions, ``[n, 128]``."""
    return jnp.tile(parameter, (1, LANES // parameter.shape[1]))


def _of_samples(n: int, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((n, *shape), jnp.float32)


def forward(plan: Plan, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``; and what :func:`backward` wants."""
    n, g, stored = x.shape[0], plan.num_groups, _as_stored(x)
    mean, covariance, whitening = _call(
        _statistics_kernel,
        plan,
        (stored,),
        (_of_samples(n, LANES), _of_samples(n, g, g), _of_samples(n, g, g)),
        (ROWS, SQUARES, SQUARE, SQUARE),
    )
    (y,) = _call(
        _apply_kernel,
        plan,
        (stored, mean, whitening, _side_by_side(scale), _side_by_side(bias)),
        (jax.ShapeDtypeStruct(stored.shape, x.dtype),),
        (ROWS, SQUARES),
    )
    return _as_images(y, x.shape), mean, covariance


def backward(
    plan: Plan, x: jax.Array, dy: jax.Array, scale: jax.Array, mean: jax.Array, covariance: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivatives by ``x``, scale and bias (of every sample, ``[n, c]``) from that by the output, ``dy``."""
    n, g, c = x.shape[0], plan.num_groups, plan.channels
    stored, outer, factor = _as_stored(x), _as_stored(dy), _side_by_side(scale)
    row, square = _of_samples(n, LANES), _of_samples(n, g, g)
    whitening, through, correction, dscale, dbias = _call(
        _cross_kernel,
        plan,
        (stored, outer, mean, covariance, factor),
        (square, square, row, row, row),
        (ROWS, ROWS, SQUARES),
    )
    (dx,) = _call(
        _pullback_kernel,
        plan,
        (stored, outer, mean, factor, whitening, through, correction),
        (jax.ShapeDtypeStruct(stored.shape, x.dtype),),
        (ROWS, ROWS, SQUARES, SQUARES),
    )
    return _as_images(dx, x.shape), dscale.reshape(n, -1, c).sum(1), dbias.reshape(n, -1, c).sum(1)
