"""Eigendecompositions of many matrices; on CPUs JAX calls LAPACK for them."""

import jax

from gw_jax.ops.sharding import explicit_sharding
from gw_jax.versions import batched_lapack_can_hang


def eigh(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors ``[..., d, d]`` and eigenvalues ``[..., d]``, in no order, of symmetric matrices ``[..., d, d]``.

    On a CPU with JAX 0.10, matrices are decomposed one at a time. It divides a batch among the threads that also start the
    batches, so two that do not depend on each other, as in a block and its shortcut, wait for each other for ever on a
    machine of two cores. A batch of one is not divided. One at a time took 1.0 to 1.1 of the time (256 matrices of 32 x 32,
    2 cores). With several devices batches stay, since a loop would gather a sharded one. So do the batches of ``jax.vmap``.
    """
    several = jax.local_device_count() > 1 or explicit_sharding(matrices) is not None
    if not batched_lapack_can_hang() or several or not matrices.size:
        return _eigh(matrices)
    return jax.lax.platform_dependent(matrices, cpu=_one_at_a_time, default=_eigh)


def _eigh(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    vectors, values = jax.lax.linalg.eigh(matrices, sort_eigenvalues=False)
    return vectors, values


def _one_at_a_time(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    vectors, values = jax.lax.map(_eigh, matrices.reshape(-1, *matrices.shape[-2:]))
    return vectors.reshape(matrices.shape), values.reshape(matrices.shape[:-1])
