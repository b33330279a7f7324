"""Decompositions of many matrices on CPUs, where JAX calls LAPACK."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.sharding import explicit_sharding
from gw_jax.versions import batched_lapack_can_hang


def eigh(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors ``[..., d, d]`` and eigenvalues ``[..., d]``, in no order, of symmetric matrices ``[..., d, d]``."""
    return one_at_a_time(_eigh)(matrices)


def qr_factor(matrices: jax.Array) -> jax.Array:
    """The factor ``R`` ``[..., min(m, d), d]`` of the QR decompositions of matrices ``[..., m, d]``."""
    return one_at_a_time(_qr_factor)(matrices)


def one_at_a_time(decompose: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """``decompose``, which accepts ``[..., m, d]``, called for one matrix at a time on CPUs with JAX 0.10.

    It divides a batch of decompositions among the threads that also start them. Two batches that do not depend on each
    other, as of a block and its shortcut, then wait for each other for ever on a machine of two cores. A batch of one is
    not divided. One at a time took 1.0 to 1.1 of the time (256 matrices of 32 x 32, 2 cores). Where the types of arrays state shardings, JAX refuses such a loop, and batches stay.
    """

    def apply(matrices: jax.Array) -> Any:
        if not batched_lapack_can_hang() or explicit_sharding(matrices) is not None or not matrices.size:
            return decompose(matrices)
        return jax.lax.platform_dependent(matrices, cpu=in_turn, default=decompose)

    def in_turn(matrices: jax.Array) -> Any:
        batch = matrices.shape[:-2]
        # jax.vmap of this would make batches again.
        single = jax.custom_batching.sequential_vmap(decompose)
        results = jax.lax.map(single, matrices.reshape(-1, *matrices.shape[-2:]))
        return jax.tree.map(lambda result: result.reshape(*batch, *result.shape[1:]), results)

    return apply


def _eigh(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    vectors, values = jax.lax.linalg.eigh(matrices, sort_eigenvalues=False)
    return vectors, values


def _qr_factor(matrices: jax.Array) -> jax.Array:
    return jnp.linalg.qr(matrices, mode="r")
