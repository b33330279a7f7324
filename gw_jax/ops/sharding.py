"""Shardings in the types of arrays: meshes with explicit axes (``jax.sharding.AxisType.Explicit``)."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """The sharding in the type of ``x``, or None where its mesh has no explicit axes."""
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def sharding_of_sums(x: jax.Array) -> PartitionSpec | None:
    """The ``out_sharding`` of products that sum over all axes but the first; explicit meshes need one."""
    sharding = explicit_sharding(x)
    return None if sharding is None else PartitionSpec(sharding.spec[0])


def shard_batch_only(x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
    """Gathers all axes but the first, where the type says that they are sharded.

    Statistics cross positions and channels, and JAX refuses to slice or split an explicitly sharded axis. The mask
    becomes sharded as ``x`` is. In ``jax.shard_map``, ``x`` varies over the devices where the mask does, so that
    derivatives by hand are summed over them.
    """
    x = _gather(x)
    if mask is None:
        return x, None
    mask, sharding = jnp.asarray(mask), explicit_sharding(x)
    if sharding is not None:
        wanted = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], *[None] * (mask.ndim - 1)))
        mask = mask if explicit_sharding(mask) == wanted else jax.sharding.reshard(mask, wanted)
    return vary_as(x, mask), mask


def vary_as(x: jax.Array, other: jax.Array) -> jax.Array:
    """``x``, in ``jax.shard_map`` with the devices among which ``other`` differs in its type, too.

    JAX then sums a derivative by hand over them, which it does by itself only for derivatives of its own.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return x
    # Always true, which XLA folds for integers. Both branches are equal: the condition only changes the type.
    return jnp.where((other.astype(jnp.int32) * 0).sum() == 0, x, x)


def _gather(x: jax.Array) -> jax.Array:
    sharding = explicit_sharding(x)
    if sharding is None or not any(sharding.spec[1:]):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0])))


def replicate(parameter: jax.Array) -> jax.Array:
    """``parameter`` with no axis sharded, where its type says that one is."""
    sharding = explicit_sharding(parameter)
    if sharding is None or not any(sharding.spec):
        return parameter
    return jax.sharding.reshard(parameter, NamedSharding(sharding.mesh, PartitionSpec()))


def reshard_like(y: jax.Array, x: jax.Array) -> jax.Array:
    """``y`` sharded as ``x``, which has the same shape, where the type of ``x`` says how."""
    sharding = explicit_sharding(x)
    return y if sharding is None or not any(sharding.spec[1:]) else jax.sharding.reshard(y, sharding)
