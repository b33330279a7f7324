"""Group Whitening for TPUs, a sample at a time: one kernel reads x and writes y, another reads x and dy and writes dx.

A program holds eight samples on the chip. XLA keeps images with 128 channels or more as ``[h, w, n, c]`` in memory, samples
in the sublanes and channels in the lanes of a tile, and the kernel takes them as they lie, so nothing is copied around it.
The rows of one sample are every eighth row of the block, which a strided load picks. The backward kernel computes the
statistics again from ``x`` instead of reading them. :mod:`tpu_math` has the mathematics.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.checks import result_like
from gw_jax.ops.plan import Plan
from gw_jax.ops.tpu_math import LANES, NT, SUBLANES, TN, applied, dot, expanded, membership, newton, newton_derivative

SAMPLES = SUBLANES


class _Rows:
    """A block ``[p, 8, c]`` as float32 rows by sample, in one scratch array ``[8 p, 128]`` for every 128 channels."""

    def __init__(self, scratch: Sequence[Any], positions: int):
        self._scratch, self._positions = scratch, positions

    def fill(self, block: Any) -> None:
        for part, rows in enumerate(self._scratch):
            rows[...] = block[:, :, part * LANES : (part + 1) * LANES].astype(jnp.float32).reshape(rows.shape)

    def empty(self, block: Any) -> None:
        for part, rows in enumerate(self._scratch):
            values = rows[...].reshape(self._positions, SAMPLES, LANES)
            block[:, :, part * LANES : (part + 1) * LANES] = values.astype(block.dtype)

    def _of(self, sample: Any) -> Any:
        from jax.experimental import pallas as pl

        return pl.ds(sample, self._positions, stride=SAMPLES)

    def __getitem__(self, sample: Any) -> jax.Array:
        return jnp.concatenate([rows[self._of(sample), :] for rows in self._scratch], axis=1)

    def __setitem__(self, sample: Any, values: jax.Array) -> None:
        for part, rows in enumerate(self._scratch):
            rows[self._of(sample), :] = values[:, part * LANES : (part + 1) * LANES]


def _centred(rows: jax.Array, member: jax.Array, plan: Plan) -> jax.Array:
    """``rows`` ``[p, c]`` without the mean of their group; exactly zero where a group is constant."""
    # The distance to one of the values is averaged, as in centre_groups: the group's first channel at the first position.
    first_channel = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, member.shape, 0), plan.channels_per_group) == 0
    shift = dot(dot(rows[:1], jnp.where(first_channel, member, 0.0)), member, NT)
    distance = rows - shift
    mean = dot(distance.sum(0, keepdims=True), member) / (plan.positions * plan.channels_per_group)
    return distance - dot(mean, member, NT)


def _covariance(centred: jax.Array, member: jax.Array, same: jax.Array, plan: Plan) -> jax.Array:
    products = dot(centred, centred, TN) * same
    return dot(dot(member, products, TN), member) / (plan.positions * plan.channels_per_group)


def _each_sample(do: Callable[[Any], None]) -> None:
    # A loop on the chip: eight copies of its body would take eight times as long to compile.
    jax.lax.fori_loop(0, SAMPLES, lambda sample, _: do(sample), None)


def _row(sample: Any) -> Any:
    from jax.experimental import pallas as pl

    return pl.ds(sample, 1)


def _statistics(samples: _Rows, matrices: Any, dtype: Any, member: jax.Array, same: jax.Array, plan: Plan) -> Any:
    """Centres the rows of every sample, rounded to the type of the input; whitening to ``matrices`` ``[8, g, g]``.

    Returns what the derivative of the iterations needs.
    """

    def one(sample: Any) -> None:
        centred = _centred(samples[sample], member, plan).astype(dtype)
        matrices[sample] = _covariance(centred, member, same, plan)
        samples[sample] = centred.astype(jnp.float32)

    _each_sample(one)
    matrices[...], saved = newton(matrices[...], plan.num_iterations, plan.epsilon)
    return saved


def _forward_kernel(x: Any, scale: Any, bias: Any, y: Any, rows: Any, matrices: Any, *, plan: Plan) -> None:
    member, same = membership(plan, plan.channels)
    samples = _Rows(rows, plan.positions)
    samples.fill(x)
    _statistics(samples, matrices, x.dtype, member, same, plan)

    def apply(sample: Any) -> None:
        white = applied(samples[sample].astype(x.dtype), expanded(matrices[sample], member, same))
        samples[sample] = white * scale[_row(sample), :] + bias[_row(sample), :]

    _each_sample(apply)
    samples.empty(y)


def _backward_kernel(
    x: Any,
    dy: Any,
    scale: Any,
    dx: Any,
    dscale: Any,
    dbias: Any,
    rows: Any,
    matrices: Any,
    outer_rows: Any,
    derivatives: Any,
    *,
    plan: Plan,
) -> None:
    member, same = membership(plan, plan.channels)
    samples, cotangents = _Rows(rows, plan.positions), _Rows(outer_rows, plan.positions)
    samples.fill(x)
    cotangents.fill(dy)
    saved = _statistics(samples, matrices, x.dtype, member, same, plan)

    def cross(sample: Any) -> None:
        outer, factor = cotangents[sample], scale[_row(sample), :]
        # The sum over positions of dy e^T holds the derivatives of W and of the scale.
        products = dot(samples[sample].astype(x.dtype), outer.astype(x.dtype), TN) * same
        dscale[_row(sample), :] = jnp.sum(products * expanded(matrices[sample], member, same), axis=0, keepdims=True)
        dbias[_row(sample), :] = jnp.sum(outer, axis=0, keepdims=True)
        derivatives[sample] = dot(dot(member, products * factor, TN), member)

    _each_sample(cross)
    count = plan.positions * plan.channels_per_group
    derivatives[...] = (2 / count) * newton_derivative(derivatives[...], saved)

    def pull(sample: Any) -> None:
        scaled = cotangents[sample] * scale[_row(sample), :]
        matrix, through = (expanded(of[sample], member, same) for of in (matrices, derivatives))
        # Rows are centred, so the derivative's mean over a group comes from dy alone. It goes before dy is rounded: what is
        # left would be the same at all positions.
        mean = dot(scaled.sum(0, keepdims=True), member) / count
        inner = (scaled - dot(mean, member, NT)).astype(x.dtype)
        samples[sample] = applied(inner, matrix) + applied(samples[sample].astype(x.dtype), through)

    _each_sample(pull)
    samples.empty(dx)


def _call(kernel: Callable[..., None], plan: Plan, inputs: Sequence[jax.Array], outputs: Sequence[Any], copies: int) -> Any:
    """Runs a kernel over blocks of eight samples. Arrays are ``[p, n, c]`` or ``[n, c]``.

    It gets ``copies`` times memory for float32 rows of a block and for a matrix a sample.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def block(shape: Sequence[int]) -> Any:
        if len(shape) == 3:
            return pl.BlockSpec((shape[0], SAMPLES, shape[2]), lambda i: (0, i, 0))
        return pl.BlockSpec((SAMPLES, shape[1]), lambda i: (i, 0))

    n, c = inputs[0].shape[1], plan.channels
    per_position = 2 * c * c * (1 if copies == 1 else 2)
    newton = 2 * plan.num_groups**3 * (plan.num_iterations - 1) * (3 if copies == 1 else 7)
    moved = sum(array.size * jnp.dtype(array.dtype).itemsize for array in (*inputs, *outputs))
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(n // SAMPLES,),
        in_specs=[block(array.shape) for array in inputs],
        out_specs=[block(array.shape) for array in outputs],
        out_shape=list(outputs),
        scratch_shapes=[
            (pltpu.VMEM((plan.positions * SAMPLES, LANES), jnp.float32),) * (c // LANES),
            pltpu.VMEM((SAMPLES, plan.num_groups, plan.num_groups), jnp.float32),
        ]
        * copies,
        cost_estimate=pl.CostEstimate(
            flops=n * (2 * plan.positions * per_position + newton), bytes_accessed=moved, transcendentals=n
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=plan.memory, dimension_semantics=("parallel",)),
        interpret=plan.interpret,
    )(*inputs)


def _as_stored(x: jax.Array) -> jax.Array:
    """``[n, h, w, c]`` as ``[h w, n, c]``, which is how XLA lays it out."""
    n, h, w, c = x.shape
    return x.transpose(1, 2, 0, 3).reshape(h * w, n, c)


def _as_images(stored: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Undoes :func:`_as_stored`."""
    n, h, w, c = shape
    return stored.reshape(h, w, n, c).transpose(2, 0, 1, 3)


def forward(plan: Plan, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``."""
    stored = _as_stored(x)
    (y,) = _call(_forward_kernel, plan, (stored, scale, bias), (result_like(x, stored.shape, x.dtype),), 1)
    return (_as_images(y, x.shape),)


def backward(plan: Plan, x: jax.Array, dy: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivatives by ``x``, scale and bias (of every sample, ``[n, c]``) from that by the output, ``dy``."""
    stored, small = _as_stored(x), result_like(x, scale.shape, jnp.float32)
    outputs = (result_like(x, stored.shape, x.dtype), small, small)
    dx, dscale, dbias = _call(_backward_kernel, plan, (stored, _as_stored(dy), scale), outputs, 2)
    return _as_images(dx, x.shape), dscale, dbias
