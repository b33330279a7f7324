"""The four kernels of :mod:`tpu_tiled`; their arguments are references to inputs, outputs and scratch memory.

A grid of blocks of samples and tiles runs them: ``start`` before the first tile of a block, ``end`` after its last.
Matrices between channels stay on the chip for all tiles of a block, where it has room for them. Otherwise sums of products
``P`` are kept as ``E^T (same * P)`` ``[g, c]``, from which everything follows, and matrices are expanded for every tile.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.spec import SMALL_MEMORY, KernelSpec
from gw_jax.ops.kernels.tpu_layouts import layout_of
from gw_jax.ops.kernels.tpu_math import NT, TN, apply_matrix, dot, expanded, membership, newton, newton_vjp
from gw_jax.ops.kernels.tpu_rows import Valid, for_each_sample, read_row, write_row


def _first_and_last() -> tuple[Any, Any]:
    from jax.experimental import pallas as pl

    return pl.program_id(1) == 0, pl.program_id(1) == pl.num_programs(1) - 1


def _each_sample(do: Callable[[Any], None], spec: KernelSpec) -> None:
    for_each_sample(do, layout_of(spec).samples)


def _some_together(do: Callable[[list[Any]], None], spec: KernelSpec) -> None:
    """Calls ``do`` with several samples at a time, whose iterations run side by side."""
    if layout_of(spec).samples == 1:
        do([0])
        return
    together = 8 if spec.memory > SMALL_MEMORY else 2

    def body(number: Any, _: None) -> None:
        do([number * together + i for i in range(together)])

    jax.lax.fori_loop(0, layout_of(spec).samples // together, body, None)


def _add(products: Any, sample: Any, a: jax.Array, b: jax.Array, member: jax.Array, same: jax.Array) -> None:
    """Adds ``a^T b`` to a sample's sum."""
    product = dot(a, b, TN)
    products[sample] += product if products.shape[1] == product.shape[0] else dot(member, product * same, TN)


def _by_groups(products: Any, sample: Any, member: jax.Array, same: jax.Array) -> jax.Array:
    """A sample's sum, between groups and channels ``[g, c]``."""
    found = products[sample]
    return dot(member, found * same, TN) if found.shape[0] == member.shape[0] else found


def _between_channels(matrices: Any, held: Sequence[Any], spec: KernelSpec) -> Callable[[Any], jax.Array]:
    """Gives a sample's matrix between channels for one between groups. ``held`` has memory for it, or is empty."""
    from jax.experimental import pallas as pl

    def expand(sample: Any) -> jax.Array:
        return expanded(matrices[sample], *membership(spec, layout_of(spec).row))

    if not held:
        return expand

    @pl.when(_first_and_last()[0])
    def start() -> None:
        def keep(sample: Any) -> None:
            held[0][sample] = expand(sample)

        _each_sample(keep, spec)

    return lambda sample: held[0][sample]


def _count(valid: Valid | None, spec: KernelSpec) -> Any:
    """Observations per group: a number, or ``[1, g]``."""
    if valid is None:
        return spec.positions * spec.channels_per_group
    return valid.count[:, : spec.num_groups]


def statistics_kernel(
    valid: Valid | None,
    x: Any,
    mean: Any,
    covariance: Any,
    whitening: Any,
    rows: Any,
    products: Any,
    *more: Any,
    spec: KernelSpec,
) -> None:
    """Mean, covariance and whitening matrix of every sample."""
    from jax.experimental import pallas as pl

    sums, shift, rounded = more
    layout = layout_of(spec)
    member, same = membership(spec, layout.row)
    tile = layout.tile(rows, valid)
    first, last = _first_and_last()
    count = _count(valid, spec)

    @pl.when(first)
    def start() -> None:
        products[...] = jnp.zeros(products.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)
        rounded[...] = jnp.zeros(rounded.shape, jnp.float32)
        # As in centre_groups; the value is the group's first of the sample.
        lane = jax.lax.broadcasted_iota(jnp.int32, member.shape, 0)
        is_first = (jax.lax.rem(lane, spec.channels_per_group) == 0) & (lane < spec.channels)
        shift[...] = dot(dot(layout.first(x, valid), jnp.where(is_first, member, 0.0)), member, NT)

    tile.load(x, shift[...], sums)

    def add(sample: Any) -> None:
        values = tile[sample].astype(x.dtype)
        _add(products, sample, values, values, member, same)
        # The mean of the rounded values: where the first value is far from the rest, all are rounded in one direction.
        total = read_row(rounded, sample) + values.astype(jnp.float32).sum(0, keepdims=True)
        write_row(rounded, sample, total)

    _each_sample(add, spec)

    @pl.when(last)
    def end() -> None:
        mean[...] = shift[...] + dot(dot(sums[...], member) / count, member, NT)

        def finish(samples: list[Any]) -> None:
            covariances = []
            for sample in samples:
                of_groups = dot(read_row(rounded, sample), member) / count
                between = dot(_by_groups(products, sample, member, same), member) / count
                covariances.append(between - dot(of_groups, of_groups, TN))
                covariance[sample] = covariances[-1]
            found, _ = newton(jnp.stack(covariances), spec.num_iterations, spec.epsilon)
            for i, sample in enumerate(samples):
                whitening[sample] = found[i]

        _some_together(finish, spec)


def apply_kernel(
    valid: Valid | None,
    x: Any,
    mean: Any,
    whitening: Any,
    scale: Any,
    bias: Any,
    y: Any,
    rows: Any,
    *held: Any,
    spec: KernelSpec,
) -> None:
    """The output, from means and whitening matrices."""
    tile = layout_of(spec).tile(rows, valid)
    matrix = _between_channels(whitening, held, spec)
    tile.load(x, mean[...])

    def apply(sample: Any) -> None:
        tile[sample] = apply_matrix(tile[sample].astype(x.dtype), matrix(sample))

    _each_sample(apply, spec)
    tile.store(y, scale[...], bias[...])


def covariance_grad_kernel(
    valid: Valid | None,
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
    samples, outer = (layout_of(spec).tile(memory, valid) for memory in (rows, cotangents))
    first, last = _first_and_last()
    count = _count(valid, spec)

    @pl.when(first)
    def start() -> None:
        products[...] = jnp.zeros(products.shape, jnp.float32)
        dbias[...] = jnp.zeros(dbias.shape, jnp.float32)

    samples.load(x, mean[...])
    outer.load(dy, None, dbias)

    def add(sample: Any) -> None:
        _add(products, sample, samples[sample].astype(x.dtype), outer[sample].astype(x.dtype), member, same)

    _each_sample(add, spec)

    @pl.when(last)
    def end() -> None:
        def finish(chosen: list[Any]) -> None:
            found, saved = newton(jnp.stack([covariance[sample] for sample in chosen]), spec.num_iterations, spec.epsilon)
            cotangent = []
            for i, sample in enumerate(chosen):
                factor, between = read_row(scale, sample), _by_groups(products, sample, member, same)
                write_row(dscale, sample, jnp.sum(between * dot(found[i], member, NT), axis=0, keepdims=True))
                of_groups = dot(read_row(dbias, sample) * factor, member) / count
                write_row(outer_mean, sample, dot(of_groups, member, NT))
                cotangent.append(dot(between * factor, member))
                whitening[sample] = found[i]
            derivative = newton_vjp(jnp.stack(cotangent), saved)
            for i, sample in enumerate(chosen):
                through[sample] = 2 * derivative[i] / count

        _some_together(finish, spec)


def input_grad_kernel(
    valid: Valid | None,
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
    *held: Any,
    spec: KernelSpec,
) -> None:
    """The gradient of the input."""
    samples, outer = (layout_of(spec).tile(memory, valid) for memory in (rows, cotangents))
    matrix, derivative = (_between_channels(of, held[i : i + 1], spec) for i, of in enumerate((whitening, through)))
    samples.load(x, mean[...])
    outer.load(dy)

    def apply(sample: Any) -> None:
        # Rows are centred, so the mean of the gradient over a group comes from dy alone. It is subtracted before dy is
        # rounded: a rounding error of the mean would be the same at all positions.
        inner = outer[sample] * read_row(scale, sample) - read_row(outer_mean, sample)
        samples[sample] = apply_matrix(inner.astype(x.dtype), matrix(sample)) + apply_matrix(
            samples[sample].astype(x.dtype), derivative(sample)
        )

    _each_sample(apply, spec)
    samples.store(dx)
