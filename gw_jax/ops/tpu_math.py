"""What the TPU kernels of Group Whitening compute of the samples that they hold on the chip.

With ``e`` ``[p, c]`` the centred values of a sample at ``p`` positions, ``k = c / g`` channels a group, ``E`` ``[c, g]``
which channel is in which group, and ``same`` ``[c, c]`` true where two channels have the same place in their groups::

    C = E^T (same * e^T e) E / (k p),   W = C^(-1/2),   y = e (same * E W E^T)

so that every product is a full matrix product over the lanes. Statistics and Newton iterations are in float32; the products
over positions take the input's type and add up in float32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gw_jax.ops.inverse_sqrt import HIGHEST, NEWTON_CUBIC, NEWTON_LINEAR

LANES = 128


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of a kernel.

    Attributes:
        positions: of a sample.
        channels: of a sample.
        num_groups: divides ``channels``.
        num_iterations: Newton-Schulz iterations, 2 or more.
        epsilon: added to the covariance's diagonal.
        tiled: whether samples go through the chip in tiles (:mod:`tpu_tiles`) or whole (:mod:`tpu_samples`).
        interpret: whether the instructions run one by one on any device, which is slow and serves to test.
        mesh: devices over which the samples are split; None where they are not.
        axis: of the mesh, along which they are split.
    """

    positions: int
    channels: int
    num_groups: int
    num_iterations: int
    epsilon: float
    tiled: bool = False
    interpret: bool = False
    mesh: Mesh | None = None
    axis: str | None = None

    @property
    def channels_per_group(self) -> int:
        """``c / g``."""
        return self.channels // self.num_groups


# Products over the last axis of the first and the first of the second; over the first of both; over the last of both.
NN, TN, NT = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
BATCHED = (((2,), (1,)), ((0,), (0,)))


def dot(a: jax.Array, b: jax.Array, dimensions: Any = NN) -> jax.Array:
    """A product that adds up in float32, and is exact to float32 where its factors are float32."""
    precision = HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def membership(plan: Plan) -> tuple[jax.Array, jax.Array]:
    """``E`` ``[l, g]`` and ``same`` ``[l, l]`` of the module for rows of ``l`` lanes: one position, or several."""
    lanes, g, k = max(plan.channels, LANES), plan.num_groups, plan.channels_per_group

    def iota(columns: int, axis: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, (lanes, columns), axis)

    def place(lane: jax.Array) -> jax.Array:
        # A channel's place in its group; another one for every position.
        return jax.lax.rem(lane, k) + k * jax.lax.div(lane, plan.channels)

    member = jax.lax.div(jax.lax.rem(iota(g, 0), plan.channels), k) == iota(g, 1)
    same = place(iota(lanes, 0)) == place(iota(lanes, 1))
    return member.astype(jnp.float32), same.astype(jnp.float32)


def unit_matrix(size: int) -> jax.Array:
    """``[1, size, size]``, made of iotas: kernels take no constants."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (1, size, size), axis) for axis in (1, 2))
    return (rows == columns).astype(jnp.float32)


def newton(covariance: jax.Array, plan: Plan) -> tuple[jax.Array, Any]:
    """The whitening matrices of ``[b, g, g]``, and what :func:`newton_derivative` needs.

    The coupled iteration of :func:`gw_jax.ops.inverse_sqrt_newton`, without its guard for many iterations.
    """
    identity = unit_matrix(plan.num_groups)
    covariance = covariance + plan.epsilon * identity
    trace = jnp.sum(covariance * identity, axis=(1, 2), keepdims=True)
    trace = jnp.where(trace == 0, 1.0, trace)
    normalised = covariance / trace
    p = NEWTON_LINEAR * identity + NEWTON_CUBIC * normalised
    y = dot(normalised, p, BATCHED)
    iterates = []
    for iteration in range(1, plan.num_iterations):
        step = NEWTON_LINEAR * identity + NEWTON_CUBIC * dot(p, y, BATCHED)
        iterates.append((p, y, step))
        p = dot(step, p, BATCHED)
        if iteration < plan.num_iterations - 1:
            y = dot(y, step, BATCHED)
    whitening = jax.lax.rsqrt(trace) * p
    return whitening, (trace, normalised, iterates, whitening)


def newton_derivative(cotangent: jax.Array, saved: Any, plan: Plan) -> jax.Array:
    """The derivative by the covariance, of which the symmetric part counts. All iterates are symmetric and commute."""
    trace, normalised, iterates, whitening = saved
    identity = unit_matrix(plan.num_groups)
    dp, dy = jax.lax.rsqrt(trace) * cotangent, None
    for p, y, step in reversed(iterates):
        dstep, before = dot(dp, p, BATCHED), dot(step, dp, BATCHED)
        if dy is not None:
            dstep = dstep + dot(y, dy, BATCHED)
        dproduct = NEWTON_CUBIC * dstep
        through_y = dot(p, dproduct, BATCHED)
        dy = through_y if dy is None else dot(dy, step, BATCHED) + through_y
        dp = before + dot(dproduct, y, BATCHED)
    assert dy is not None  # There are two iterations at least.
    first = NEWTON_LINEAR * identity + NEWTON_CUBIC * normalised
    dnormalised = NEWTON_CUBIC * (dp + dot(normalised, dy, BATCHED)) + dot(dy, first, BATCHED)
    through_trace = (dnormalised * normalised).sum((1, 2), keepdims=True) + 0.5 * (cotangent * whitening).sum(
        (1, 2), keepdims=True
    )
    return (dnormalised - identity * through_trace) / trace


def expanded(matrix: jax.Array, member: jax.Array, same: jax.Array) -> jax.Array:
    """A matrix between groups ``[g, g]`` as one between channels ``[c, c]``."""
    return dot(dot(member, matrix), member, NT) * same


def applied(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """``rows`` times a float32 matrix, which counts in full where the rows are bfloat16."""
    if rows.dtype == jnp.float32:
        return dot(rows, matrix)
    upper = matrix.astype(rows.dtype)
    lower = (matrix - upper.astype(jnp.float32)).astype(rows.dtype)
    return dot(rows, upper) + dot(rows, lower)
