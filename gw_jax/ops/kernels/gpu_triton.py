"""Group Whitening for GPUs: one kernel reads x twice and writes y, another reads x and dy twice and writes dx.

A program per sample visits its tiles twice. The first pass finds mean and covariance of the groups, backward also the
gradient of the whitening matrix; iterations follow, and the second pass applies their result. Reading x again costs less
than the exchange between programs that splitting a sample would need. Only x is kept for the backward pass. A ReLU is an
epilogue of the forward kernel; the backward kernel then reads y, too, which is zero where the ReLU cut it off.

The values of a sample are rows ``[r, g]``, one for every position and channel of a group, as in
:mod:`gw_jax.ops.row_products`::

    memory, position by position     c = 0 1 2 | 3 4 5      two groups (g = 2) of three channels
    rows of the tile on the chip     (0 3) (1 4) (2 5)

With ``e`` the rows minus a shift near their mean, ``s`` their sum, ``m`` their number, ``f`` the rows of ``dy`` times the
scale and ``t`` the sum of those (``dy`` being zero where a ReLU has cut off the output)::

    C = e^T e / m - s s^T / m^2,   W = C^(-1/2),   y = (e - s / m) W
    dW = e^T f - s t^T / m,   dx = (f - t / m) W + (e - s / m) (2 / m) dC

Where the input is bfloat16, so are ``e``, ``f`` and the matrices of the last line. Means are subtracted before that
rounding, or computed from rounded numbers: a rounding error of the mean would be the same at all positions and add up in
the layers before.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops import inverse_sqrt
from gw_jax.ops.kernels.gpu_tiles import Tiles, fewest_positions
from gw_jax.ops.kernels.products import Dot, dot_full_precision_matrix, result_like
from gw_jax.ops.kernels.spec import KernelSpec

# Warps per program, by the bytes of a value. On an H100 in bfloat16, four take 0.57 to 0.88 of the time of eight, since two
# programs then share a multiprocessor. In float32, four spill three times as many registers.
NUM_WARPS = {2: 4, 4: 8}
NUM_STAGES = 3  # Tiles in flight.
# A matrix product needs 16 rows and columns at least; for more than 64 groups a program has too few registers.
GROUPS = (16, 32, 64)
MOST_CHANNELS = 64  # Of a group.
# One sample per program: with 16 samples most of the card is idle, and plain XLA is as fast at 56 x 56 x 64.
FEWEST_SAMPLES = 32
_OVER_ROWS = (((0,), (0,)), ((), ()))
_PLAIN = (((1,), (0,)), ((), ()))


# Cards for which the kernels compile; the backward kernel needs 112 KiB of a multiprocessor's shared memory, 144 KiB with a
# ReLU. The names include "GH200" and "GB200". For an A100, ptxas crashes.
CARDS = ("H100", "H200", "B200")


@functools.cache
def _has_triton() -> bool:
    # JAX 0.12 announces its removal.
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def serves(kind: str) -> bool:
    """Whether there are kernels for a device kind at all."""
    return _has_triton() and any(card in kind for card in CARDS)


def supports(kind: str, positions: int, num_groups: int, channels_per_group: int) -> bool:
    """Whether there is a kernel for a device kind and samples of these sizes. Axes of a kernel are powers of two."""
    if not serves(kind):
        return False
    fits = 1 <= channels_per_group <= MOST_CHANNELS and channels_per_group & (channels_per_group - 1) == 0
    return fits and num_groups in GROUPS and positions >= fewest_positions(channels_per_group)


def dot(a: jax.Array, b: jax.Array, dimensions: Any, spec: KernelSpec) -> jax.Array:
    """A product with float32 accumulation, exact to nearly float32 where its factors are float32."""
    precision: Any = None
    if a.dtype == jnp.float32:
        # Three products of TF32 parts: the tensor cores have no float32.
        precision = jax.lax.Precision.HIGHEST if spec.interpret else jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _of_matrices(spec: KernelSpec, dtype: Any) -> Dot:
    """Products of the iterations. Three products of bfloat16 parts are exact to 1e-5, where the input is off by 4e-3.

    Every iteration multiplies an error in a direction without variance by 2.25, so many iterations need more.
    """

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        if spec.interpret or dtype == jnp.float32 or spec.num_iterations > 7:
            return dot(a, b, _PLAIN, spec)
        precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3
        return jax.lax.dot_general(a, b, _PLAIN, precision=precision, preferred_element_type=jnp.float32)

    return product


def _forward_kernel(x: Any, scale: Any, bias: Any, y: Any, *, spec: KernelSpec) -> None:
    tiles, g = Tiles(spec, x.dtype.itemsize), spec.num_groups
    count = spec.positions * spec.channels_per_group
    shift = tiles.shift(x)

    def add(tile: Any, sums: Any) -> Any:
        rows = tiles.distances(x, tile, shift)
        return sums[0] + dot(rows, rows, _OVER_ROWS, spec), sums[1] + rows.astype(jnp.float32).sum(0)

    start = jnp.zeros((g, g), jnp.float32), jnp.zeros((g,), jnp.float32)
    products, sums = jax.lax.fori_loop(0, tiles.count, add, start)
    mean = sums / count
    covariance = products / count - mean[:, None] * mean[None, :]
    whitening, _ = inverse_sqrt.newton(covariance, spec.num_iterations, spec.epsilon, _of_matrices(spec, x.dtype))
    factor, offset, centre = tiles.per_place(scale), tiles.per_place(bias), shift + mean

    def apply(tile: Any, _: Any) -> None:
        rows = tiles.distances(x, tile, centre)
        white = dot_full_precision_matrix(rows, whitening, functools.partial(dot, dimensions=_PLAIN, spec=spec))
        values = (tiles.by_places(white) * factor + offset).reshape(white.shape)
        # Not jnp.maximum: Triton's returns the number where one of the two is NaN.
        tiles.store(y, tile, jnp.where(values < 0, 0, values) if spec.relu else values)

    jax.lax.fori_loop(0, tiles.count, apply, None)


def _backward_kernel(x: Any, dy: Any, scale: Any, *others: Any, spec: KernelSpec) -> None:
    *saved, dx, dscale, dbias = others
    tiles, g, d = Tiles(spec, x.dtype.itemsize), spec.num_groups, spec.channels_per_group
    count = spec.positions * d
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
            sums[0] + dot(rows, rows, _OVER_ROWS, spec),
            sums[1] + rows.astype(jnp.float32).sum(0),
            sums[2] + dot(rows, inner, _OVER_ROWS, spec),
            sums[3] + inner.astype(jnp.float32).sum(0),
            sums[4] + tiles.by_places(outer).sum(0),
        )

    start = tuple(jnp.zeros(shape, jnp.float32) for shape in ((g, g), (g,), (g, g), (g,), (d, g)))
    products, sums, crossed, inner_sums, outer_sums = jax.lax.fori_loop(0, tiles.count, add, start)
    mean, inner_mean = sums / count, (outer_sums[None] * factor).sum(1).sum(0) / count
    dwhitening = crossed - mean[:, None] * inner_sums[None, :]
    dwhitening = 0.5 * (dwhitening + dwhitening.T)
    product = _of_matrices(spec, x.dtype)
    normalised, trace = inverse_sqrt.normalise(products / count - mean[:, None] * mean[None, :], spec.epsilon)
    last: list[tuple[jax.Array, jax.Array]] = []

    def seen() -> Any:
        """The iterates, of which only the last stays: registers are few."""
        for pair in inverse_sqrt.iterates(normalised, spec.num_iterations, product):
            last[:] = [pair]
            yield pair

    through = inverse_sqrt.derivative_of_iterates(seen(), dwhitening, product)
    whitening = inverse_sqrt.whitening_of(last[0], trace, product)
    dcovariance = inverse_sqrt.derivative_by_covariance(through, dwhitening, normalised, whitening, trace)
    # A bfloat16 gradient needs no more than bfloat16 matrices.
    upper, dcovariance = whitening.astype(x.dtype), ((2 / count) * dcovariance).astype(x.dtype)
    centre = shift + mean

    def apply(tile: Any, total: jax.Array) -> jax.Array:
        rows = tiles.distances(x, tile, centre)
        outer, inner = scaled(tile)
        inner = (inner - inner_mean[None, :]).astype(x.dtype)
        tiles.store(dx, tile, dot(inner, upper, _PLAIN, spec) + dot(rows, dcovariance, _PLAIN, spec))
        return total + tiles.by_places(outer * dot(rows, upper, _PLAIN, spec)).sum(0)

    total = jax.lax.fori_loop(0, tiles.count, apply, jnp.zeros((d, g), jnp.float32))
    dscale[...] = total.T
    dbias[...] = outer_sums.T


def _call(
    kernel: Callable[..., None],
    name: str,
    spec: KernelSpec,
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
) -> Any:
    """Runs a kernel over the samples, the first axis of all arrays."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    def block(shape: Sequence[int]) -> Any:
        return pl.BlockSpec((None, *shape[1:]), lambda sample: (sample,) + (0,) * (len(shape) - 1))

    backward = kernel is _backward_kernel
    n, g = inputs[0].shape[0], spec.num_groups
    over_rows = 2 * spec.positions * spec.channels * g * (5 if backward else 3)
    between_groups = 2 * g**3 * (spec.num_iterations - 1) * (7 if backward else 3)
    moved = sum(2 * array.nbytes for array in inputs) + sum(array.size * array.dtype.itemsize for array in outputs)
    return pl.pallas_call(
        functools.partial(kernel, spec=spec),
        grid=(n,),
        in_specs=[block(array.shape) for array in inputs],
        out_specs=[block(array.shape) for array in outputs],
        out_shape=list(outputs),
        cost_estimate=pl.CostEstimate(flops=n * (over_rows + between_groups), bytes_accessed=moved, transcendentals=n),
        compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS[inputs[0].dtype.itemsize], num_stages=NUM_STAGES),
        interpret=spec.interpret,
        name=name,
    )(*inputs)


def _by_positions(x: jax.Array, spec: KernelSpec) -> jax.Array:
    return x.reshape(x.shape[0], spec.positions, spec.num_groups, spec.channels_per_group)


def _by_places(parameter: jax.Array, spec: KernelSpec) -> jax.Array:
    return parameter.reshape(-1, spec.num_groups, spec.channels_per_group)


def forward(spec: KernelSpec, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``."""
    rows = _by_positions(x, spec)
    inputs = rows, _by_places(scale, spec), _by_places(bias, spec)
    (y,) = _call(_forward_kernel, "group_whitening", spec, inputs, [result_like(x, rows.shape, x.dtype)])
    return (y.reshape(x.shape),)


def backward(
    spec: KernelSpec, x: jax.Array, dy: jax.Array, scale: jax.Array, *saved: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of ``x``, scale and bias (per sample, ``[n, c]``) for the gradient ``dy`` of the output.

    ``saved`` is the output where the spec has a ReLU.
    """
    rows, factor = _by_positions(x, spec), _by_places(scale, spec)
    small = result_like(x, factor.shape, jnp.float32)
    outputs = [result_like(x, rows.shape, x.dtype), small, small]
    inputs = rows, _by_positions(dy, spec), factor, *(_by_positions(y, spec) for y in saved)
    dx, dscale, dbias = _call(_backward_kernel, "group_whitening_backward", spec, inputs, outputs)
    return dx.reshape(x.shape), dscale.reshape(scale.shape), dbias.reshape(scale.shape)
