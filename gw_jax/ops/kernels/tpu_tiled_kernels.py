"""The four kernels of :mod:`tpu_tiled`; their arguments are references to inputs, outputs and scratch memory.

A grid of blocks of samples and tiles runs them: ``start`` before the first tile of a block, ``end`` after its last.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.spec import SMALL_MEMORY, KernelSpec
from gw_jax.ops.kernels.tpu_layouts import for_each_sample, layout_of, row_of
from gw_jax.ops.kernels.tpu_math import NT, TN, apply_matrix, dot, expanded, membership, newton, newton_vjp


def _first_and_last() -> tuple[Any, Any]:
    from jax.experimental import pallas as pl

    return pl.program_id(1) == 0, pl.program_id(1) == pl.num_programs(1) - 1


def _each_sample(do: Callable[[Any], None], spec: KernelSpec) -> None:
    for_each_sample(do, layout_of(spec).samples)


def _some_together(do: Callable[[list[Any]], None], spec: KernelSpec) -> None:
    """Calls ``do`` with several samples at a time, whose iterations run side by side."""
    together = 8 if spec.memory > SMALL_MEMORY else 2

    def body(number: Any, _: None) -> None:
        do([number * together + i for i in range(together)])

    jax.lax.fori_loop(0, layout_of(spec).samples // together, body, None)


def statistics_kernel(
    x: Any, mean: Any, covariance: Any, whitening: Any, rows: Any, products: Any, *more: Any, spec: KernelSpec
) -> None:
    """Mean, covariance and whitening matrix of every sample."""
    from jax.experimental import pallas as pl

    sums, shift, rounded = more
    member, same = membership(spec, layout_of(spec).row)
    tile = layout_of(spec).tile(rows)
    first, last = _first_and_last()
    count = spec.positions * spec.channels_per_group

    @pl.when(first)
    def start() -> None:
        products[...] = jnp.zeros(products.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)
        rounded[...] = jnp.zeros(rounded.shape, jnp.float32)
        # As in centre_groups; the value is the group's first of the sample.
        lane = jax.lax.broadcasted_iota(jnp.int32, member.shape, 0)
        is_first = (jax.lax.rem(lane, spec.channels_per_group) == 0) & (lane < spec.channels)
        shift[...] = dot(dot(layout_of(spec).first(x), jnp.where(is_first, member, 0.0)), member, NT)

    tile.load(x, shift[...], sums)

    def add(sample: Any) -> None:
        values = tile[sample].astype(x.dtype)
        products[sample] += dot(values, values, TN)
        # The mean of the rounded values: where the first value is far from the rest, all are rounded in one direction.
        rounded[row_of(sample), :] += values.astype(jnp.float32).sum(0, keepdims=True)

    _each_sample(add, spec)

    @pl.when(last)
    def end() -> None:
        mean[...] = shift[...] + dot(dot(sums[...], member) / count, member, NT)

        def finish(samples: list[Any]) -> None:
            covariances = []
            for sample in samples:
                of_groups = dot(rounded[row_of(sample), :], member) / count
                between = dot(dot(member, products[sample] * same, TN), member) / count
                covariances.append(between - dot(of_groups, of_groups, TN))
                covariance[sample] = covariances[-1]
            found, _ = newton(jnp.stack(covariances), spec.num_iterations, spec.epsilon)
            for i, sample in enumerate(samples):
                whitening[sample] = found[i]

        _some_together(finish, spec)


def apply_kernel(
    x: Any, mean: Any, whitening: Any, scale: Any, bias: Any, y: Any, rows: Any, matrices: Any, *, spec: KernelSpec
) -> None:
    """The output, from means and whitening matrices."""
    from jax.experimental import pallas as pl

    tile = layout_of(spec).tile(rows)
    first, _ = _first_and_last()

    @pl.when(first)
    def start() -> None:
        member, same = membership(spec, layout_of(spec).row)

        def expand(sample: Any) -> None:
            matrices[sample] = expanded(whitening[sample], member, same)

        _each_sample(expand, spec)

    tile.load(x, mean[...])

    def apply(sample: Any) -> None:
        tile[sample] = apply_matrix(tile[sample].astype(x.dtype), matrices[sample])

    _each_sample(apply, spec)
    tile.store(y, scale[...], bias[...])


def covariance_grad_kernel(
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
    spec: KernelSpec,
) -> None:
    """The gradient of the covariance, and those of scale and bias."""
    from jax.experimental import pallas as pl

    member, same = membership(spec, layout_of(spec).row)
    samples, outer = layout_of(spec).tile(rows), layout_of(spec).tile(cotangents)
    first, last = _first_and_last()
    count = spec.positions * spec.channels_per_group

    @pl.when(first)
    def start() -> None:
        products[...] = jnp.zeros(products.shape, jnp.float32)
        dbias[...] = jnp.zeros(dbias.shape, jnp.float32)

    samples.load(x, mean[...])
    outer.load(dy, None, dbias)

    def add(sample: Any) -> None:
        products[sample] += dot(samples[sample].astype(x.dtype), outer[sample].astype(x.dtype), TN)

    _each_sample(add, spec)

    @pl.when(last)
    def end() -> None:
        def finish(chosen: list[Any]) -> None:
            found, saved = newton(jnp.stack([covariance[sample] for sample in chosen]), spec.num_iterations, spec.epsilon)
            cotangent = []
            for i, sample in enumerate(chosen):
                matrix, factor = expanded(found[i], member, same), scale[row_of(sample), :]
                between = products[sample] * same
                dscale[row_of(sample), :] = jnp.sum(between * matrix, axis=0, keepdims=True)
                of_groups = dot(dbias[row_of(sample), :] * factor, member) / count
                outer_mean[row_of(sample), :] = dot(of_groups, member, NT)
                cotangent.append(dot(dot(member, between * factor, TN), member))
                whitening[sample] = found[i]
            derivative = newton_vjp(jnp.stack(cotangent), saved)
            for i, sample in enumerate(chosen):
                through[sample] = 2 * derivative[i] / count

        _some_together(finish, spec)


def input_grad_kernel(
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
    spec: KernelSpec,
) -> None:
    """The gradient of the input."""
    from jax.experimental import pallas as pl

    samples, outer = layout_of(spec).tile(rows), layout_of(spec).tile(cotangents)
    first, _ = _first_and_last()

    @pl.when(first)
    def start() -> None:
        member, same = membership(spec, layout_of(spec).row)

        def expand(sample: Any) -> None:
            matrices[sample] = expanded(whitening[sample], member, same)
            derivatives[sample] = expanded(through[sample], member, same)

        _each_sample(expand, spec)

    samples.load(x, mean[...])
    outer.load(dy)

    def apply(sample: Any) -> None:
        # Rows are centred, so the mean of the gradient over a group comes from dy alone. It is subtracted before dy is
        # rounded: a rounding error of the mean would be the same at all positions.
        inner = outer[sample] * scale[row_of(sample), :] - outer_mean[row_of(sample), :]
        samples[sample] = apply_matrix(inner.astype(x.dtype), matrices[sample]) + apply_matrix(
            samples[sample].astype(x.dtype), derivatives[sample]
        )

    _each_sample(apply, spec)
    samples.store(dx)
