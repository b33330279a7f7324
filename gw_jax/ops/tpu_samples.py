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

from gw_jax.ops.plan import Plan
from gw_jax.ops.tpu_math import LANES, NT, TN, applied, dot, expanded, membership, newton, newton_derivative

SAMPLES = 8  # The sublanes of a tile.


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

    def _of(self, sample: int) -> Any:
        from jax.experimental import pallas as pl

        return pl.ds(sample, self._positions, stride=SAMPLES)

    def __getitem__(self, sample: int) -> jax.Array:
        return jnp.concatenate([rows[self._of(sample), :] for rows in self._scratch], axis=1)

    def __setitem__(self, sample: int, values: jax.Array) -> None:
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


def _statistics(samples: _Rows, dtype: Any, member: jax.Array, same: jax.Array, plan: Plan) -> Any:
    """Centred rows of every sample, in the input's type; whitening matrices ``[8, g, g]`` and what they came from."""
    centred, covariances = [], []
    for sample in range(SAMPLES):
        centred.append(_centred(samples[sample], member, plan).astype(dtype))
        covariances.append(_covariance(centred[-1], member, same, plan))
    whitening, saved = newton(jnp.stack(covariances), plan.num_iterations, plan.epsilon)
    return centred, whitening, saved


def _forward_kernel(x: Any, scale: Any, bias: Any, y: Any, *scratch: Any, plan: Plan) -> None:
    member, same = membership(plan)
    samples = _Rows(scratch, plan.positions)
    samples.fill(x)
    centred, whitening, _ = _statistics(samples, x.dtype, member, same, plan)
    for sample in range(SAMPLES):
        white = applied(centred[sample], expanded(whitening[sample], member, same))
        samples[sample] = white * scale[sample : sample + 1, :] + bias[sample : sample + 1, :]
    samples.empty(y)


def _backward_kernel(x: Any, dy: Any, scale: Any, dx: Any, dscale: Any, dbias: Any, *scratch: Any, plan: Plan) -> None:
    member, same = membership(plan)
    half = len(scratch) // 2
    samples, cotangents = _Rows(scratch[:half], plan.positions), _Rows(scratch[half:], plan.positions)
    samples.fill(x)
    cotangents.fill(dy)
    centred, whitening, saved = _statistics(samples, x.dtype, member, same, plan)
    matrices, dwhitening = [], []
    for sample in range(SAMPLES):
        rows, factor = cotangents[sample], scale[sample : sample + 1, :]
        # The sum over positions of dy e^T holds the derivatives of W and of the scale.
        products = dot(centred[sample], rows.astype(x.dtype), TN) * same
        matrices.append(expanded(whitening[sample], member, same))
        dscale[sample : sample + 1, :] = jnp.sum(products * matrices[-1], axis=0, keepdims=True)
        dbias[sample : sample + 1, :] = jnp.sum(rows, axis=0, keepdims=True)
        dwhitening.append(dot(dot(member, products * factor, TN), member))
    dcovariance = newton_derivative(jnp.stack(dwhitening), saved)
    count = plan.positions * plan.channels_per_group
    for sample in range(SAMPLES):
        scaled = cotangents[sample] * scale[sample : sample + 1, :]
        through = expanded(2 * dcovariance[sample] / count, member, same)
        # Rows are centred, so the derivative's mean over a group comes from dy alone.
        mean = dot(dot(scaled.sum(0, keepdims=True), matrices[sample]), member) / count
        samples[sample] = (
            applied(scaled.astype(x.dtype), matrices[sample]) + applied(centred[sample], through) - dot(mean, member, NT)
        )
    samples.empty(dx)


def _call(kernel: Callable[..., None], plan: Plan, inputs: Sequence[jax.Array], outputs: Sequence[Any], copies: int) -> Any:
    """Runs a kernel over blocks of eight samples. Arrays are ``[p, n, c]`` or ``[n, c]``; ``copies`` float32 blocks."""
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
        scratch_shapes=[pltpu.VMEM((plan.positions * SAMPLES, LANES), jnp.float32)] * (copies * c // LANES),
        cost_estimate=pl.CostEstimate(
            flops=n * (2 * plan.positions * per_position + newton), bytes_accessed=moved, transcendentals=n
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=100 << 20, dimension_semantics=("parallel",)),
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
    (y,) = _call(_forward_kernel, plan, (stored, scale, bias), (jax.ShapeDtypeStruct(stored.shape, x.dtype),), 1)
    return (_as_images(y, x.shape),)


def backward(plan: Plan, x: jax.Array, dy: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivatives by ``x``, scale and bias (of every sample, ``[n, c]``) from that by the output, ``dy``."""
    stored, small = _as_stored(x), jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    outputs = (jax.ShapeDtypeStruct(stored.shape, x.dtype), small, small)
    dx, dscale, dbias = _call(_backward_kernel, plan, (stored, _as_stored(dy), scale), outputs, 2)
    return _as_images(dx, x.shape), dscale, dbias
