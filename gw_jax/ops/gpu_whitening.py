"""Group Whitening for GPUs: one kernel reads x twice and writes y, another reads x and dy twice and writes dx.

With a ReLU after it, the first takes it in, and the second reads y twice, too, which tells where it was cut off.

A program has one sample. Its values are rows ``[r, g]``, a row for every position and channel of a group, as in
:mod:`matmul_whitening`; they go through the chip in tiles, where channels and groups change places. The first round over
the tiles finds mean and covariance of the groups, and backward also the derivative of the whitening matrix; the iterations
follow, and the second round applies what they gave. Only x is kept for the backward pass, and y with a ReLU.

With ``e`` the rows less a shift near their mean, ``s`` the sum of them, ``m`` their number, ``f`` the rows of ``dy`` times
the scale and ``t`` the sum of those (``dy`` being zero where a ReLU has cut off the output)::

    C = e^T e / m - s s^T / m^2,   W = C^(-1/2),   y = (e - s / m) W
    dW = e^T f - s t^T / m,   dx = (f - t / m) W + (e - s / m) (2 / m) dC

Where the input is bfloat16, so are ``e``, ``f`` and the matrices of the last line. Means are subtracted before that
rounding, or come from rounded numbers: else the difference is the same at all positions and adds up in the layers before.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops import newton
from gw_jax.ops.checks import applied, result_like
from gw_jax.ops.plan import Plan

# By the bytes of a value: rows of a tile, at most, with one channel per group and with more; warps per program.
# On an H100 in bfloat16, four warps take 0.5 to 0.9 of the time of eight, since two programs then share a multiprocessor,
# and 32 rows take 0.6 to 0.9 of the time of 64 with 2 to 8 channels per group. In float32, four warps spill.
ROWS = {2: (128, 32), 4: (64, 64)}
NUM_WARPS = {2: 4, 4: 8}
NUM_STAGES = 3  # Tiles in flight.
# A matrix product takes 16 rows and columns at least; for more than 64 groups a program has too few registers.
GROUPS = (16, 32, 64)
MOST_CHANNELS = 64  # Of a group.
# One program per sample: with 16 samples most of the card is idle, and plain XLA is as fast at 56 x 56 x 64.
FEWEST_SAMPLES = 32
_OVER_ROWS = (((0,), (0,)), ((), ()))
_PLAIN = (((1,), (0,)), ((), ()))


# Whose compilers have taken the kernels; the backward kernel needs 112 KiB of a multiprocessor's shared memory, 144 KiB
# with a ReLU. "GH200" and "GB200" are among them. For an A100, ptxas crashes.
CARDS = ("H100", "H200", "B200")


@functools.cache
def _has_triton() -> bool:
    # JAX 0.12 announces that a later version will be without it.
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def takes(kind: str, positions: int, num_groups: int, channels_per_group: int) -> bool:
    """Whether there is a kernel for a kind of device and samples of these sizes. Axes of a kernel are powers of two."""
    if not _has_triton() or not any(card in kind for card in CARDS):
        return False
    fits = 1 <= channels_per_group <= MOST_CHANNELS and channels_per_group & (channels_per_group - 1) == 0
    return fits and num_groups in GROUPS and positions >= _fewest_positions(channels_per_group)


def _fewest_positions(channels_per_group: int) -> int:
    """Of a tile: a product over its rows needs 16 of them."""
    return max(1, 16 // channels_per_group)


def _tile_positions(plan: Plan, width: int) -> int:
    """Positions of a tile: as many as give ``ROWS`` rows, and no more than the sample has, as a power of two."""
    most = 1 << (plan.positions.bit_length() - 1)
    rows = ROWS[width][plan.channels_per_group > 1]
    return max(_fewest_positions(plan.channels_per_group), min(rows // plan.channels_per_group, most))


def dot(a: jax.Array, b: jax.Array, dimensions: Any, plan: Plan) -> jax.Array:
    """A product that adds up in float32, and is exact to nearly float32 where its factors are float32."""
    precision: Any = None
    if a.dtype == jnp.float32:
        # Three products of TF32 parts: the tensor cores have no float32.
        precision = jax.lax.Precision.HIGHEST if plan.interpret else jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _of_matrices(plan: Plan, dtype: Any) -> newton.Dot:
    """Products of the iterations. Three products of bfloat16 parts are exact to 1e-5, where the input is off by 4e-3.

    Every iteration multiplies an error in a direction without variance by 2.25, so many iterations need more.
    """

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        if plan.interpret or dtype == jnp.float32 or plan.num_iterations > 7:
            return dot(a, b, _PLAIN, plan)
        precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3
        return jax.lax.dot_general(a, b, _PLAIN, precision=precision, preferred_element_type=jnp.float32)

    return product


class _Tiles:
    """A sample ``[p, g, d]`` in memory as tiles of rows ``[r, g]``."""

    def __init__(self, plan: Plan, width: int):
        self._plan, self._size = plan, _tile_positions(plan, width)
        self.count = -(-plan.positions // self._size)

    def _where(self, tile: Any) -> tuple[Any, jax.Array | None]:
        """The tile's positions, and which of them the sample has, or None where all."""
        from jax.experimental import pallas as pl

        first = tile * self._size
        if self._plan.positions % self._size == 0:
            return pl.ds(first, self._size), None
        return pl.ds(first, self._size), (first + jnp.arange(self._size) < self._plan.positions)[:, None, None]

    def _by_groups(self, block: jax.Array) -> jax.Array:
        """``[p, g, d]`` as ``[p d, g]``."""
        return block.swapaxes(1, 2).reshape(-1, self._plan.num_groups)

    def by_places(self, rows: jax.Array) -> jax.Array:
        """``[p d, g]`` as ``[p, d, g]``."""
        return rows.reshape(self._size, self._plan.channels_per_group, self._plan.num_groups)

    def load(self, ref: Any, tile: Any) -> jax.Array:
        from jax.experimental.pallas import triton as plgpu

        positions, valid = self._where(tile)
        view = ref.at[positions, :, :]
        return self._by_groups(plgpu.load(view) if valid is None else plgpu.load(view, mask=valid, other=0))

    def store(self, ref: Any, tile: Any, rows: jax.Array) -> None:
        from jax.experimental.pallas import triton as plgpu

        positions, valid = self._where(tile)
        values = self.by_places(rows).swapaxes(1, 2).astype(ref.dtype)
        plgpu.store(ref.at[positions, :, :], values, mask=valid)

    def only_valid(self, tile: Any, rows: jax.Array) -> jax.Array:
        """``rows`` with zeros where the sample has none."""
        _, valid = self._where(tile)
        return rows if valid is None else jnp.where(valid, self.by_places(rows), 0).reshape(rows.shape)

    def shift(self, ref: Any) -> jax.Array:
        """``[g]``: near the mean of every group, and equal to its values where they are all the same.

        It is the group's first value and the mean distance from it in the first tile.
        """
        from jax.experimental import pallas as pl

        first = self.load(ref, 0).astype(jnp.float32)
        start = ref[pl.ds(0, 1), :, pl.ds(0, 1)].astype(jnp.float32).reshape(-1)
        held = min(self._size, self._plan.positions) * self._plan.channels_per_group
        return start + self.only_valid(0, first - start[None, :]).sum(0) / held

    def distances(self, ref: Any, tile: Any, shift: jax.Array) -> jax.Array:
        """The tile's rows less ``shift``, in the input's type."""
        rows = self.load(ref, tile)
        return self.only_valid(tile, rows.astype(jnp.float32) - shift[None, :]).astype(rows.dtype)

    def per_place(self, ref: Any) -> jax.Array:
        """``[g, d]`` as ``[1, d, g]``."""
        return ref[...].astype(jnp.float32).T[None]


def _forward_kernel(x: Any, scale: Any, bias: Any, y: Any, *, plan: Plan) -> None:
    tiles, g = _Tiles(plan, x.dtype.itemsize), plan.num_groups
    count = plan.positions * plan.channels_per_group
    shift = tiles.shift(x)

    def add(tile: Any, sums: Any) -> Any:
        rows = tiles.distances(x, tile, shift)
        return sums[0] + dot(rows, rows, _OVER_ROWS, plan), sums[1] + rows.astype(jnp.float32).sum(0)

    start = jnp.zeros((g, g), jnp.float32), jnp.zeros((g,), jnp.float32)
    products, sums = jax.lax.fori_loop(0, tiles.count, add, start)
    mean = sums / count
    covariance = products / count - mean[:, None] * mean[None, :]
    whitening, _ = newton.newton(covariance, plan.num_iterations, plan.epsilon, _of_matrices(plan, x.dtype))
    factor, offset, centre = tiles.per_place(scale), tiles.per_place(bias), shift + mean

    def apply(tile: Any, _: Any) -> None:
        rows = tiles.distances(x, tile, centre)
        white = applied(rows, whitening, functools.partial(dot, dimensions=_PLAIN, plan=plan))
        values = (tiles.by_places(white) * factor + offset).reshape(white.shape)
        # Not jnp.maximum, which Triton takes for the number where one of the two is NaN.
        tiles.store(y, tile, jnp.where(values < 0, 0, values) if plan.relu else values)

    jax.lax.fori_loop(0, tiles.count, apply, None)


def _backward_kernel(x: Any, dy: Any, scale: Any, *others: Any, plan: Plan) -> None:
    *saved, dx, dscale, dbias = others
    tiles, g, d = _Tiles(plan, x.dtype.itemsize), plan.num_groups, plan.channels_per_group
    count = plan.positions * d
    shift, factor = tiles.shift(x), tiles.per_place(scale)

    def scaled(tile: Any) -> tuple[jax.Array, jax.Array]:
        """The rows of dy, where the output is not cut off at zero, and these times the scale."""
        rows = tiles.load(dy, tile).astype(jnp.float32)
        for y in saved:
            rows = jnp.where(tiles.load(y, tile) > 0, rows, 0)
        return rows, (tiles.by_places(rows) * factor).reshape(rows.shape)

    def add(tile: Any, sums: Any) -> Any:
        rows = tiles.distances(x, tile, shift)
        outer, inner = scaled(tile)
        inner = inner.astype(x.dtype)
        return (
            sums[0] + dot(rows, rows, _OVER_ROWS, plan),
            sums[1] + rows.astype(jnp.float32).sum(0),
            sums[2] + dot(rows, inner, _OVER_ROWS, plan),
            sums[3] + inner.astype(jnp.float32).sum(0),
            sums[4] + tiles.by_places(outer).sum(0),
        )

    start = tuple(jnp.zeros(shape, jnp.float32) for shape in ((g, g), (g,), (g, g), (g,), (d, g)))
    products, sums, crossed, inner_sums, outer_sums = jax.lax.fori_loop(0, tiles.count, add, start)
    mean, inner_mean = sums / count, (outer_sums[None] * factor).sum(1).sum(0) / count
    dwhitening = crossed - mean[:, None] * inner_sums[None, :]
    dwhitening = 0.5 * (dwhitening + dwhitening.T)
    product = _of_matrices(plan, x.dtype)
    normalised, trace = newton.normalise(products / count - mean[:, None] * mean[None, :], plan.epsilon)
    last: list[tuple[jax.Array, jax.Array]] = []

    def seen() -> Any:
        """The iterates, of which only the last stays: registers are few."""
        for pair in newton.iterates(normalised, plan.num_iterations, product):
            last[:] = [pair]
            yield pair

    through = newton.derivative_of_iterates(seen(), dwhitening, product)
    whitening = newton.whitening_of(last[0], trace, product)
    dcovariance = newton.derivative_by_covariance(through, dwhitening, normalised, whitening, trace)
    # A derivative in bfloat16 takes its matrices in bfloat16.
    upper, dcovariance = whitening.astype(x.dtype), ((2 / count) * dcovariance).astype(x.dtype)
    centre = shift + mean

    def apply(tile: Any, total: jax.Array) -> jax.Array:
        rows = tiles.distances(x, tile, centre)
        outer, inner = scaled(tile)
        inner = (inner - inner_mean[None, :]).astype(x.dtype)
        tiles.store(dx, tile, dot(inner, upper, _PLAIN, plan) + dot(rows, dcovariance, _PLAIN, plan))
        return total + tiles.by_places(outer * dot(rows, upper, _PLAIN, plan)).sum(0)

    total = jax.lax.fori_loop(0, tiles.count, apply, jnp.zeros((d, g), jnp.float32))
    dscale[...] = total.T
    dbias[...] = outer_sums.T


def _call(
    kernel: Callable[..., None], name: str, plan: Plan, inputs: Sequence[jax.Array], outputs: Sequence[jax.ShapeDtypeStruct]
) -> Any:
    """Runs a kernel over the samples, the first axis of all arrays."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    def block(shape: Sequence[int]) -> Any:
        return pl.BlockSpec((None, *shape[1:]), lambda sample: (sample,) + (0,) * (len(shape) - 1))

    backward = kernel is _backward_kernel
    n, g = inputs[0].shape[0], plan.num_groups
    over_rows = 2 * plan.positions * plan.channels * g * (5 if backward else 3)
    between_groups = 2 * g**3 * (plan.num_iterations - 1) * (7 if backward else 3)
    moved = sum(2 * array.nbytes for array in inputs) + sum(array.size * array.dtype.itemsize for array in outputs)
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(n,),
        in_specs=[block(array.shape) for array in inputs],
        out_specs=[block(array.shape) for array in outputs],
        out_shape=list(outputs),
        cost_estimate=pl.CostEstimate(flops=n * (over_rows + between_groups), bytes_accessed=moved, transcendentals=n),
        compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS[inputs[0].dtype.itemsize], num_stages=NUM_STAGES),
        interpret=plan.interpret,
        name=name,
    )(*inputs)


def _by_positions(x: jax.Array, plan: Plan) -> jax.Array:
    return x.reshape(x.shape[0], plan.positions, plan.num_groups, plan.channels_per_group)


def _by_places(parameter: jax.Array, plan: Plan) -> jax.Array:
    return parameter.reshape(-1, plan.num_groups, plan.channels_per_group)


def forward(plan: Plan, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``."""
    rows = _by_positions(x, plan)
    inputs = rows, _by_places(scale, plan), _by_places(bias, plan)
    (y,) = _call(_forward_kernel, "group_whitening", plan, inputs, [result_like(x, rows.shape, x.dtype)])
    return (y.reshape(x.shape),)


def backward(
    plan: Plan, x: jax.Array, dy: jax.Array, scale: jax.Array, *saved: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivatives by ``x``, scale and bias (of every sample, ``[n, c]``) from that by the output, ``dy``.

    ``saved`` is the output where the plan has a ReLU.
    """
    rows, factor = _by_positions(x, plan), _by_places(scale, plan)
    small = result_like(x, factor.shape, jnp.float32)
    outputs = [result_like(x, rows.shape, x.dtype), small, small]
    inputs = rows, _by_positions(dy, plan), factor, *(_by_positions(y, plan) for y in saved)
    dx, dscale, dbias = _call(_backward_kernel, "group_whitening_backward", plan, inputs, outputs)
    return dx.reshape(x.shape), dscale.reshape(scale.shape), dbias.reshape(scale.shape)
