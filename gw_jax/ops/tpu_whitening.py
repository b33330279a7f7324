"""Group Whitening as one kernel a direction for TPUs: x is read and y written, x and dy read and dx written.

A program holds eight samples on the chip. XLA keeps images with 128 channels or more as ``[h, w, n, c]`` in memory, samples
in the sublanes and channels in the lanes of a tile, and the kernel takes them as they lie, so nothing is copied around it.
The rows of one sample are every eighth row of the block, which a strided load picks.

With ``e`` ``[p, c]`` the centred values of a sample at ``p`` positions, ``k = c / g`` channels a group, ``E`` ``[c, g]``
which channel is in which group, and ``same`` ``[c, c]`` true where two channels have the same place in their groups::

    C = E^T (same * e^T e) E / (k p),   W = C^(-1/2),   y = e (same * E W E^T)

so that every product is a full matrix product over the lanes. The backward kernel computes all of that again from ``x``
instead of reading it. Statistics and Newton iterations are in float32; the products over positions take the input's type
and add up in float32.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from gw_jax.ops.inverse_sqrt import FIRST_GUARDED_ITERATION, HIGHEST, NEWTON_CUBIC, NEWTON_LINEAR, inverse_sqrt_newton
from gw_jax.ops.plain_whitening import affine_per_sample, plain_whiten

SAMPLES = 8  # The sublanes of a tile.
LANES = 128
# Bytes that a kernel may take of the memory next to the compute units, which is larger than what programs get by default.
VMEM = {"TPU v5 lite": 100 << 20, "TPU v5": 50 << 20, "TPU v6 lite": 100 << 20, "TPU v4": 14 << 20}
# A value takes this many bytes at most: three blocks, each twice so that one is moved while the other is computed on, two
# float32 copies, and what the compiler keeps of a sample.
BYTES_PER_VALUE = {2: 24, 4: 36}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of a kernel: positions and channels of a sample, groups, iterations; and whether to interpret it."""

    positions: int
    channels: int
    num_groups: int
    num_iterations: int
    epsilon: float
    interpret: bool = False

    @property
    def channels_per_group(self) -> int:
        """``c / g``."""
        return self.channels // self.num_groups


def supports(shape: Sequence[int], dtype: Any, num_iterations: int, kind: str) -> bool:
    """Whether there is a kernel for an input of ``shape`` ``[n, h, w, c]`` on a device of this kind."""
    if (
        len(shape) != 4
        or not 2 <= num_iterations < FIRST_GUARDED_ITERATION
        or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32)
    ):
        return False
    n, h, w, c = shape
    values = h * w * SAMPLES * c
    fits = values * BYTES_PER_VALUE[jnp.dtype(dtype).itemsize] <= VMEM.get(kind, 0)
    return n % SAMPLES == 0 and c % LANES == 0 and fits


# Products over the last axis of the first and the first of the second; over the first of both; over the last of both.
_NN, _TN, _NT = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
_BATCHED = (((2,), (1,)), ((0,), (0,)))


def _dot(a: jax.Array, b: jax.Array, dimensions: Any = _NN) -> jax.Array:
    """A product that adds up in float32, and is exact to float32 where its factors are float32."""
    precision = HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _membership(plan: Plan) -> tuple[jax.Array, jax.Array]:
    """``E`` ``[c, g]`` and ``same`` ``[c, c]``, see the module."""
    c, g, k = plan.channels, plan.num_groups, plan.channels_per_group

    def iota(columns: int, axis: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, (c, columns), axis)

    member = jax.lax.div(iota(g, 0), k) == iota(g, 1)
    same = jax.lax.rem(iota(c, 0), k) == jax.lax.rem(iota(c, 1), k)
    return member.astype(jnp.float32), same.astype(jnp.float32)


def _identity(size: int) -> jax.Array:
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (1, size, size), axis) for axis in (1, 2))
    return (rows == columns).astype(jnp.float32)


def _newton(covariance: jax.Array, plan: Plan) -> tuple[jax.Array, Any]:
    """The whitening matrices of ``[b, g, g]``, and what :func:`_newton_derivative` needs.

    The coupled iteration of :func:`gw_jax.ops.inverse_sqrt_newton`, without its guard for many iterations.
    """
    identity = _identity(plan.num_groups)
    covariance = covariance + plan.epsilon * identity
    trace = jnp.sum(covariance * identity, axis=(1, 2), keepdims=True)
    trace = jnp.where(trace == 0, 1.0, trace)
    normalised = covariance / trace
    p = NEWTON_LINEAR * identity + NEWTON_CUBIC * normalised
    y = _dot(normalised, p, _BATCHED)
    iterates = []
    for iteration in range(1, plan.num_iterations):
        step = NEWTON_LINEAR * identity + NEWTON_CUBIC * _dot(p, y, _BATCHED)
        iterates.append((p, y, step))
        p = _dot(step, p, _BATCHED)
        if iteration < plan.num_iterations - 1:
            y = _dot(y, step, _BATCHED)
    whitening = jax.lax.rsqrt(trace) * p
    return whitening, (trace, normalised, iterates, whitening)


def _newton_derivative(cotangent: jax.Array, saved: Any, plan: Plan) -> jax.Array:
    """The derivative by the covariance, of which the symmetric part counts. All iterates are symmetric and commute."""
    trace, normalised, iterates, whitening = saved
    identity = _identity(plan.num_groups)
    dp, dy = jax.lax.rsqrt(trace) * cotangent, None
    for p, y, step in reversed(iterates):
        dstep, before = _dot(dp, p, _BATCHED), _dot(step, dp, _BATCHED)
        if dy is not None:
            dstep = dstep + _dot(y, dy, _BATCHED)
        dproduct = NEWTON_CUBIC * dstep
        through_y = _dot(p, dproduct, _BATCHED)
        dy = through_y if dy is None else _dot(dy, step, _BATCHED) + through_y
        dp = before + _dot(dproduct, y, _BATCHED)
    assert dy is not None  # There are two iterations at least.
    first = NEWTON_LINEAR * identity + NEWTON_CUBIC * normalised
    dnormalised = NEWTON_CUBIC * (dp + _dot(normalised, dy, _BATCHED)) + _dot(dy, first, _BATCHED)
    through_trace = (dnormalised * normalised).sum((1, 2), keepdims=True) + 0.5 * (cotangent * whitening).sum(
        (1, 2), keepdims=True
    )
    return (dnormalised - identity * through_trace) / trace


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
    shift = _dot(_dot(rows[:1], jnp.where(first_channel, member, 0.0)), member, _NT)
    distance = rows - shift
    mean = _dot(distance.sum(0, keepdims=True), member) / (plan.positions * plan.channels_per_group)
    return distance - _dot(mean, member, _NT)


def _covariance(centred: jax.Array, member: jax.Array, same: jax.Array, plan: Plan) -> jax.Array:
    products = _dot(centred, centred, _TN) * same
    return _dot(_dot(member, products, _TN), member) / (plan.positions * plan.channels_per_group)


def _expanded(matrix: jax.Array, member: jax.Array, same: jax.Array) -> jax.Array:
    """A matrix between groups ``[g, g]`` as one between channels ``[c, c]``."""
    return _dot(_dot(member, matrix), member, _NT) * same


def _applied(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """``rows`` times a float32 matrix, which counts in full where the rows are bfloat16."""
    if rows.dtype == jnp.float32:
        return _dot(rows, matrix)
    upper = matrix.astype(rows.dtype)
    lower = (matrix - upper.astype(jnp.float32)).astype(rows.dtype)
    return _dot(rows, upper) + _dot(rows, lower)


def _statistics(samples: _Rows, dtype: Any, member: jax.Array, same: jax.Array, plan: Plan) -> Any:
    """Centred rows of every sample, in the input's type; whitening matrices ``[8, g, g]`` and what they came from."""
    centred, covariances = [], []
    for sample in range(SAMPLES):
        centred.append(_centred(samples[sample], member, plan).astype(dtype))
        covariances.append(_covariance(centred[-1], member, same, plan))
    whitening, saved = _newton(jnp.stack(covariances), plan)
    return centred, whitening, saved


def _forward_kernel(x: Any, scale: Any, bias: Any, y: Any, *scratch: Any, plan: Plan) -> None:
    member, same = _membership(plan)
    samples = _Rows(scratch, plan.positions)
    samples.fill(x)
    centred, whitening, _ = _statistics(samples, x.dtype, member, same, plan)
    for sample in range(SAMPLES):
        white = _applied(centred[sample], _expanded(whitening[sample], member, same))
        samples[sample] = white * scale[sample : sample + 1, :] + bias[sample : sample + 1, :]
    samples.empty(y)


def _backward_kernel(x: Any, dy: Any, scale: Any, dx: Any, dscale: Any, dbias: Any, *scratch: Any, plan: Plan) -> None:
    member, same = _membership(plan)
    half = len(scratch) // 2
    samples, cotangents = _Rows(scratch[:half], plan.positions), _Rows(scratch[half:], plan.positions)
    samples.fill(x)
    cotangents.fill(dy)
    centred, whitening, saved = _statistics(samples, x.dtype, member, same, plan)
    matrices, dwhitening = [], []
    for sample in range(SAMPLES):
        rows, factor = cotangents[sample], scale[sample : sample + 1, :]
        # The sum over positions of dy e^T holds the derivatives of W and of the scale.
        products = _dot(centred[sample], rows.astype(x.dtype), _TN) * same
        matrices.append(_expanded(whitening[sample], member, same))
        dscale[sample : sample + 1, :] = jnp.sum(products * matrices[-1], axis=0, keepdims=True)
        dbias[sample : sample + 1, :] = jnp.sum(rows, axis=0, keepdims=True)
        dwhitening.append(_dot(_dot(member, products * factor, _TN), member))
    dcovariance = _newton_derivative(jnp.stack(dwhitening), saved, plan)
    count = plan.positions * plan.channels_per_group
    for sample in range(SAMPLES):
        scaled = cotangents[sample] * scale[sample : sample + 1, :]
        through = _expanded((dcovariance[sample] + dcovariance[sample].T) / count, member, same)
        # Rows are centred, so the derivative's mean over a group comes from dy alone.
        mean = _dot(_dot(scaled.sum(0, keepdims=True), matrices[sample]), member) / count
        samples[sample] = (
            _applied(scaled.astype(x.dtype), matrices[sample])
            + _applied(centred[sample], through)
            - _dot(mean, member, _NT)
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
    newton = 2 * plan.num_groups**3 * (3 * plan.num_iterations - 3) * (1 if copies == 1 else 3)
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


def _forward_on_tpu(plan: Plan, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    stored = _as_stored(x)
    (y,) = _call(_forward_kernel, plan, (stored, scale, bias), (jax.ShapeDtypeStruct(stored.shape, x.dtype),), 1)
    return _as_images(y, x.shape)


def _backward_on_tpu(plan: Plan, x: jax.Array, dy: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    stored, small = _as_stored(x), jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    outputs = (jax.ShapeDtypeStruct(stored.shape, x.dtype), small, small)
    dx, dscale, dbias = _call(_backward_kernel, plan, (stored, _as_stored(dy), scale), outputs, 2)
    return _as_images(dx, x.shape), dscale, dbias


def _plain_forward(plan: Plan, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    inverse_sqrt = functools.partial(inverse_sqrt_newton, num_iterations=plan.num_iterations, epsilon=plan.epsilon)
    return plain_whiten(x, plan.num_groups, inverse_sqrt, None, scale, bias).astype(x.dtype)


def _plain_backward(plan: Plan, x: jax.Array, dy: jax.Array, scale: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(functools.partial(_plain_forward, plan), x, scale, jnp.zeros_like(scale))[1](dy)


def _here(on_tpu: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel where the program is compiled for a TPU and a device has whole blocks of samples; else the definition."""

    def run(plan: Plan, *arrays: jax.Array) -> Any:
        if plan.interpret:
            return on_tpu(plan, *arrays)
        if arrays[0].shape[0] % SAMPLES:
            return plain(plan, *arrays)
        return jax.lax.platform_dependent(
            *arrays, tpu=functools.partial(on_tpu, plan), default=functools.partial(plain, plan)
        )

    return run


def _split_over_devices(run: Callable[..., Any], rule: str) -> Callable[..., Any]:
    """``run(plan, *arrays)`` on every device for its samples. XLA cannot split a kernel by itself: it would gather."""
    split = custom_partitioning(run, static_argnums=(0,))

    def partition(plan: Plan, mesh: Any, arguments: Any, results: Any) -> Any:
        spec = arguments[0].sharding.spec
        samples = spec[0] if len(spec) else None

        def along_samples(array: Any) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(samples, *(None,) * (len(array.shape) - 1)))

        places = tuple(along_samples(argument) for argument in arguments)
        return mesh, functools.partial(run, plan), jax.tree.map(along_samples, results), places

    split.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=("h", "w", "c"))
    return split


def _samples_of_all(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run(plan, *arrays)`` that takes an axis of ``jax.vmap`` as more samples, which do not depend on each other."""

    def with_plan(plan: Plan, *arrays: jax.Array) -> Any:
        mapped = jax.custom_batching.custom_vmap(functools.partial(run, plan))

        @mapped.def_vmap
        def _(size: int, batched: Sequence[bool], *arrays: jax.Array) -> Any:
            def joined(array: jax.Array, is_batched: bool) -> jax.Array:
                array = array if is_batched else jnp.broadcast_to(array[None], (size, *array.shape))
                return array.reshape(size * array.shape[1], *array.shape[2:])

            results = with_plan(plan, *map(joined, arrays, batched))
            apart = jax.tree.map(lambda array: array.reshape(size, -1, *array.shape[1:]), results)
            return apart, jax.tree.map(lambda _: True, results)

        return mapped(*arrays)

    return with_plan


_forward_run = _samples_of_all(_split_over_devices(_here(_forward_on_tpu, _plain_forward), "n h w c, n c, n c -> n h w c"))
_backward_run = _samples_of_all(
    _split_over_devices(_here(_backward_on_tpu, _plain_backward), "n h w c, n h w c, n c -> n h w c, n c, n c")
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _whiten(x: jax.Array, scale: jax.Array, bias: jax.Array, plan: Plan) -> jax.Array:
    return _forward_run(plan, x, scale, bias)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, plan: Plan) -> tuple[jax.Array, Any]:
    return _forward_run(plan, x, scale, bias), (x, scale)


def _backward(plan: Plan, residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale = residuals
    return _backward_run(plan, x, dy, scale)


_whiten.defvjp(_forward, _backward)


def kernel_whiten(
    x: jax.Array,
    num_groups: int,
    *,
    num_iterations: int,
    epsilon: float,
    scale: jax.Array | None,
    bias: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """Group Whitening by Newton iteration, see :func:`gw_jax.group_whiten`. There is no forward-mode derivative.

    On devices that are not TPUs, and where a device's share is no multiple of eight samples, the definition runs instead.

    Args:
        x: ``[n, h, w, c]`` for which :func:`supports` is true.
        num_groups: divides ``c``.
        num_iterations: Newton-Schulz iterations, 2 or more.
        epsilon: added to the covariance's diagonal.
        scale: ``[c]``, or None.
        bias: ``[c]``, or None.
        interpret: runs the kernel's instructions one by one on any device, which is slow and serves to test it.

    Returns:
        An array of the shape and type of ``x``.
    """
    plan = Plan(x.shape[1] * x.shape[2], x.shape[3], num_groups, num_iterations, epsilon, interpret)
    return _whiten(x, *affine_per_sample(x, scale, bias), plan)
