"""Group Whitening for TPUs with whole samples on the chip: x is read and y written once; backward, x and dy are read once.

A program holds eight samples, in the layout ``SamplesInSublanes`` of :mod:`tpu_layouts`. The backward kernel recomputes the
statistics from ``x`` instead of reading them, so only ``x`` is kept. :mod:`tpu_math` has the mathematics.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.inverse_sqrt import NewtonResiduals
from gw_jax.ops.kernels.products import result_like
from gw_jax.ops.kernels.spec import KernelSpec
from gw_jax.ops.kernels.tpu_batch_layouts import SamplesInSublanes, TileOfSublanes
from gw_jax.ops.kernels.tpu_math import NT, TN, apply_matrix, dot, expanded, membership, newton, newton_vjp
from gw_jax.ops.kernels.tpu_rows import for_each_sample, read_row, write_row

SAMPLES = SamplesInSublanes.samples


def _centred(rows: jax.Array, member: jax.Array, spec: KernelSpec) -> jax.Array:
    """``rows`` ``[p, c]`` without the mean of their group; exactly zero where a group is constant."""
    # As in centre_groups; the value is that of the group's first channel at the first position.
    first_channel = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, member.shape, 0), spec.channels_per_group) == 0
    shift = dot(dot(rows[:1], jnp.where(first_channel, member, 0.0)), member, NT)
    distance = rows - shift
    mean = dot(distance.sum(0, keepdims=True), member) / (spec.positions * spec.channels_per_group)
    return distance - dot(mean, member, NT)


def _covariance(centred: jax.Array, member: jax.Array, same: jax.Array, spec: KernelSpec) -> jax.Array:
    products = dot(centred, centred, TN) * same
    return dot(dot(member, products, TN), member) / (spec.positions * spec.channels_per_group)


def _statistics(
    samples: TileOfSublanes, matrices: Any, dtype: Any, member: jax.Array, same: jax.Array, spec: KernelSpec
) -> NewtonResiduals:
    """Centres the rows of every sample in place, and writes the whitening matrices to ``matrices`` ``[8, g, g]``.

    Centred rows are rounded to the type of the input, which the products have.
    """

    def one(sample: Any) -> None:
        centred = _centred(samples[sample], member, spec).astype(dtype)
        matrices[sample] = _covariance(centred, member, same, spec)
        samples[sample] = centred.astype(jnp.float32)

    for_each_sample(one, SAMPLES)
    matrices[...], saved = newton(matrices[...], spec.num_iterations, spec.epsilon)
    return saved


def _forward_kernel(x: Any, scale: Any, bias: Any, y: Any, rows: Any, matrices: Any, *, spec: KernelSpec) -> None:
    member, same = membership(spec, spec.channels)
    samples = TileOfSublanes(rows, spec.channels)
    samples.load(x)
    _statistics(samples, matrices, x.dtype, member, same, spec)

    def apply(sample: Any) -> None:
        white = apply_matrix(samples[sample].astype(x.dtype), expanded(matrices[sample], member, same))
        samples[sample] = white * read_row(scale, sample) + read_row(bias, sample)

    for_each_sample(apply, SAMPLES)
    samples.store(y)


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
    spec: KernelSpec,
) -> None:
    member, same = membership(spec, spec.channels)
    samples, cotangents = TileOfSublanes(rows, spec.channels), TileOfSublanes(outer_rows, spec.channels)
    samples.load(x)
    cotangents.load(dy)
    saved = _statistics(samples, matrices, x.dtype, member, same, spec)

    def cross(sample: Any) -> None:
        outer, factor = cotangents[sample], read_row(scale, sample)
        # The sum over positions of dy e^T holds the derivatives of W and of the scale.
        products = dot(samples[sample].astype(x.dtype), outer.astype(x.dtype), TN) * same
        write_row(dscale, sample, jnp.sum(products * expanded(matrices[sample], member, same), axis=0, keepdims=True))
        write_row(dbias, sample, jnp.sum(outer, axis=0, keepdims=True))
        derivatives[sample] = dot(dot(member, products * factor, TN), member)

    for_each_sample(cross, SAMPLES)
    count = spec.positions * spec.channels_per_group
    derivatives[...] = (2 / count) * newton_vjp(derivatives[...], saved)

    def pull(sample: Any) -> None:
        scaled = cotangents[sample] * read_row(scale, sample)
        matrix, through = (expanded(of[sample], member, same) for of in (matrices, derivatives))
        # Rows are centred, so the mean of the gradient over a group comes from dy alone. It is subtracted before dy is
        # rounded: a rounding error of the mean would be the same at all positions.
        mean = dot(scaled.sum(0, keepdims=True), member) / count
        inner = (scaled - dot(mean, member, NT)).astype(x.dtype)
        samples[sample] = apply_matrix(inner, matrix) + apply_matrix(samples[sample].astype(x.dtype), through)

    for_each_sample(pull, SAMPLES)
    samples.store(dx)


def _call(
    kernel: Callable[..., None], spec: KernelSpec, inputs: Sequence[jax.Array], outputs: Sequence[Any], copies: int
) -> Any:
    """Runs a kernel over blocks of eight samples.

    Args:
        kernel: its arguments are inputs, outputs, and scratch memory.
        spec: its sizes.
        inputs: ``[p, n, c]`` or ``[n, c]``.
        outputs: likewise.
        copies: how many times it gets memory for the float32 rows of a block, and for a matrix per sample.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def block(shape: Sequence[int]) -> Any:
        if len(shape) == 3:
            return pl.BlockSpec((shape[0], SAMPLES, shape[2]), lambda i: (0, i, 0))
        return pl.BlockSpec((SAMPLES, shape[1]), lambda i: (i, 0))

    n, c = inputs[0].shape[1], spec.channels
    per_position = 2 * c * c * (1 if copies == 1 else 2)
    newton = 2 * spec.num_groups**3 * (spec.num_iterations - 1) * (3 if copies == 1 else 7)
    moved = sum(array.size * jnp.dtype(array.dtype).itemsize for array in (*inputs, *outputs))
    return pl.pallas_call(
        functools.partial(kernel, spec=spec),
        grid=(n // SAMPLES,),
        in_specs=[block(array.shape) for array in inputs],
        out_specs=[block(array.shape) for array in outputs],
        out_shape=list(outputs),
        scratch_shapes=[
            tuple(pltpu.VMEM(shape, jnp.float32) for shape in SamplesInSublanes(spec).scratch(spec.positions)),
            pltpu.VMEM((SAMPLES, spec.num_groups, spec.num_groups), jnp.float32),
        ]
        * copies,
        cost_estimate=pl.CostEstimate(
            flops=n * (2 * spec.positions * per_position + newton), bytes_accessed=moved, transcendentals=n
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=spec.memory, dimension_semantics=("parallel",)),
        interpret=spec.interpret,
    )(*inputs)


def forward(spec: KernelSpec, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array]:
    """The output for ``x`` ``[n, h, w, c]``, ``scale`` and ``bias`` ``[n, c]``."""
    layout = SamplesInSublanes(spec)
    stored = layout.to_layout(x)
    (y,) = _call(_forward_kernel, spec, (stored, scale, bias), (result_like(x, stored.shape, x.dtype),), 1)
    return (layout.from_layout(y, x.shape),)


def backward(spec: KernelSpec, x: jax.Array, dy: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of ``x``, scale and bias (per sample, ``[n, c]``) for the gradient ``dy`` of the output."""
    layout = SamplesInSublanes(spec)
    stored, small = layout.to_layout(x), result_like(x, scale.shape, jnp.float32)
    outputs = (result_like(x, stored.shape, x.dtype), small, small)
    dx, dscale, dbias = _call(_backward_kernel, spec, (stored, layout.to_layout(dy), scale), outputs, 2)
    return layout.from_layout(dx, x.shape), dscale, dbias
