"""The mesh of a run and the shardings of its arrays."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
# Running statistics of BatchNorm and BatchWhitening, and the rank that they have where all examples share them.
_RANKS = {"mean": 1, "var": 1, "matrix": 3}


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or those given) with the one axis "data", over which batches are sharded.

    Under ``jax.jit`` on this mesh a batch mean is a global one, and Group Whitening compiles to no collective.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def local_rows(tree: Any) -> Any:
    """The rows of arrays that are on this process's devices, in their order, as NumPy arrays.

    Args:
        tree: arrays whose first axis is sharded over the devices; arrays of NumPy are returned as they are.
    """

    def rows(array: Any) -> np.ndarray:
        if not isinstance(array, jax.Array):
            return np.asarray(array)
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(rows, tree)


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """The shardings of a :class:`TrainState`, or of a part of it: replicated, except statistics of groups of examples.

    Those are sharded like the examples of the groups, so that updating them needs no communication.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if has_group_axis(path, leaf) and leaf.shape[0] % mesh.size == 0:
            return batch_sharding(mesh)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def has_group_axis(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf of the state is a running statistic with an axis over groups of examples (``statistics_sets``)."""
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    return "batch_stats" in names and leaf.ndim > _RANKS.get(str(names[-1]), leaf.ndim)


def merge_group_statistics(batch_stats: Any) -> Any:
    """``batch_stats`` as layers without ``statistics_sets`` have them: the mean over the groups of examples."""

    def merge(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.mean(0) if has_group_axis((jax.tree_util.DictKey("batch_stats"), *path), leaf) else leaf

    return jax.tree_util.tree_map_with_path(merge, batch_stats)
