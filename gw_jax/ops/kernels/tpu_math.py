"""The mathematics of the TPU kernels of Group Whitening, for samples that are on the chip.

With ``e`` ``[p, c]`` the centred values of a sample at ``p`` positions, ``k = c / g`` channels per group, ``E`` ``[c, g]``
the membership of channels in groups, and ``same`` ``[c, c]`` true where two channels have the same place in their groups::

    C = E^T (same * e^T e) E / (k p),   W = C^(-1/2),   y = e (same * E W E^T)

so that every product is a full matrix product over the lanes: groups and places as axes of their own would be small minor
axes, which a TPU pads to 128. Statistics and Newton iterations are in float32; products over positions are of the input's
type with float32 accumulation.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops import inverse_sqrt
from gw_jax.ops.inverse_sqrt import HIGHEST
from gw_jax.ops.kernels import products
from gw_jax.ops.kernels.spec import KernelSpec

LANES, SUBLANES = 128, 8  # Of a tile of vector memory.
# Products over the last axis of the first and the first of the second; over the first of both; over the last of both.
NN, TN, NT = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
BATCHED = (((2,), (1,)), ((0,), (0,)))


def dot(a: jax.Array, b: jax.Array, dimensions: Any = NN) -> jax.Array:
    """A product with float32 accumulation, exact to float32 where its factors are float32."""
    precision = HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def membership(spec: KernelSpec, lanes: int) -> tuple[jax.Array, jax.Array]:
    """``E`` ``[l, g]`` and ``same`` ``[l, l]`` of the module for rows of ``l`` lanes: one position, or several."""
    g, k = spec.num_groups, spec.channels_per_group

    def iota(columns: int, axis: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, (lanes, columns), axis)

    def place(lane: jax.Array) -> jax.Array:
        # A channel's place in its group; another one for every position.
        return jax.lax.rem(lane, k) + k * jax.lax.div(lane, spec.channels)

    member = jax.lax.div(jax.lax.rem(iota(g, 0), spec.channels), k) == iota(g, 1)
    same = place(iota(lanes, 0)) == place(iota(lanes, 1))
    return member.astype(jnp.float32), same.astype(jnp.float32)


newton = functools.partial(inverse_sqrt.newton, dot=functools.partial(dot, dimensions=BATCHED))
newton_vjp = functools.partial(inverse_sqrt.newton_vjp, dot=functools.partial(dot, dimensions=BATCHED))


def expanded(matrix: jax.Array, member: jax.Array, same: jax.Array) -> jax.Array:
    """A matrix between groups ``[g, g]`` as one between channels ``[c, c]``."""
    return dot(dot(member, matrix), member, NT) * same


apply_matrix = functools.partial(products.dot_full_precision_matrix, dot=dot)
