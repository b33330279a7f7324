"""Rows of Group Whitening in plain XLA, their products, and matrices between their numbers."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gw_jax.ops.checks import accumulation_dtype
from gw_jax.ops.inverse_sqrt import HIGHEST
from gw_jax.ops.sharding import sharding_of_sums
from gw_jax.ops.statistics import SPATIAL_LETTERS

InverseSqrt = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a call is computed.

    Attributes:
        num_groups: divides the channels.
        row: numbers in a row, ``num_groups``, or all channels: then nothing is moved, and matrices between channels
            take the place of those between groups.
        inverse_sqrt: gives the whitening matrices of the covariances ``[n, g, g]``; symmetric, differentiable.
        factors: type of the factors of all products over positions, which are accumulated in float32 (float64 for
            float64).
        platform: of the device, "cpu", "gpu" or "tpu".
    """

    num_groups: int
    row: int
    inverse_sqrt: InverseSqrt
    factors: jnp.dtype
    platform: str

    @property
    def narrow(self) -> bool:
        """Whether values of usual size are outside the range of the factors, as in float16."""
        return bool(jnp.finfo(self.factors).minexp > -100)


def channels_pay(shape: tuple[int, ...], platform: str) -> bool:
    """Whether matrices between all channels of a sample move fewer bytes than rows of groups: on TPUs, in large samples.

    There, channels lie across registers, and moving them costs copies of the image. A matrix has to be small beside it.
    """
    return platform == "tpu" and math.prod(shape[1:-1]) >= 16 * shape[-1]


def rows_of(values: jax.Array, plan: Plan, unit: jax.Array | None) -> jax.Array:
    """``[..., c]`` as ``[..., d, g]``, times ``unit``, in the type of the factors."""
    values = values if unit is None else values * per_position(unit[..., 0], values)
    return values.astype(plan.factors).reshape(*values.shape[:-1], plan.row, -1).swapaxes(-1, -2)


def channels_of(rows: jax.Array) -> jax.Array:
    """Undoes :func:`rows_of`."""
    swapped = rows.swapaxes(-1, -2)
    return swapped.reshape(*swapped.shape[:-2], -1)


def apply(rows: jax.Array, matrices: jax.Array, *, transposed: bool = False) -> jax.Array:
    """Every row of sample ``n`` times the ``n``-th matrix, or its transpose, in the type of the rows."""
    axes = SPATIAL_LETTERS[: rows.ndim - 3]
    subscripts = f"n{axes}cg,n{'kg' if transposed else 'gk'}->n{axes}ck"
    return _einsum(subscripts, rows, matrices.astype(rows.dtype), rows.dtype)


def cross(left: jax.Array, right: jax.Array, plan: Plan) -> jax.Array:
    """``[n, g, g]``: of every sample, the sum over its rows of products of a number of ``left`` and one of ``right``."""
    sharding = sharding_of_sums(left)
    if sharding is None and plan.platform != "tpu":
        # With one axis to sum over, XLA fuses the transposition into the product. An image that is sharded along w is
        # gathered for it. On TPUs h and w may not be neighbours in memory.
        left, right = (rows.reshape(rows.shape[0], -1, rows.shape[-1]) for rows in (left, right))
    axes = SPATIAL_LETTERS[: left.ndim - 2]
    dtype = accumulation_dtype(left.dtype)
    return _einsum(f"n{axes}g,n{axes}k->ngk", left, right, dtype, out_sharding=sharding)


def _einsum(subscripts: str, left: jax.Array, right: jax.Array, dtype: DTypeLike, **options: Any) -> jax.Array:
    """A product that is accumulated in float32 or float64, exact to it where its factors are of that type."""
    precision = HIGHEST if left.dtype == accumulation_dtype(left.dtype) else None
    return jnp.einsum(subscripts, left, right, precision=precision, preferred_element_type=dtype, **options)


def between_groups(matrix: jax.Array, plan: Plan) -> jax.Array:
    """Sums of products between the numbers of rows, as those between groups ``[n, g, g]``."""
    if plan.row == plan.num_groups:
        return matrix
    d = plan.row // plan.num_groups
    # In two steps: with explicit axes, a reshape divides one axis.
    n, g = matrix.shape[0], plan.num_groups
    places = matrix.reshape(n, g, d, plan.row).reshape(n, g, d, g, d)
    return jnp.diagonal(places, axis1=2, axis2=4).sum(-1)


def between_numbers(matrix: jax.Array, plan: Plan) -> jax.Array:
    """A matrix between groups as one between the numbers of rows: channels in different places do not meet."""
    if plan.row == plan.num_groups:
        return matrix
    d = plan.row // plan.num_groups
    same = jnp.eye(d, dtype=matrix.dtype).reshape(1, 1, d, 1, d)
    places = matrix[:, :, None, :, None] * same
    n, g = matrix.shape[0], plan.num_groups
    return places.reshape(n, plan.row, g, d).reshape(n, plan.row, plan.row)


def over(matrix: jax.Array, unit: jax.Array | None) -> jax.Array:
    """``matrix / unit``; None is 1."""
    return matrix if unit is None else matrix / unit


def per_position(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """``[n, c]`` or ``[n, 1]`` with the axes of ``x``."""
    return jnp.expand_dims(parameter, tuple(range(1, x.ndim - 1)))
