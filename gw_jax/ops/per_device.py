"""Functions of a batch that run on every device for its own samples."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gw_jax.ops.kernels.placement import batch_sharding
from gw_jax.ops.sharding import explicit_sharding

Result = TypeVar("Result")


def on_each_device(run: Callable[..., Result], *batch: object, multiple: int = 1) -> Result:
    """``run(*batch)``, on every device for its own samples where the sharding of the batch is known.

    For functions that treat samples apart, or groups of ``multiple`` consecutive ones. XLA does not see that: it gathers
    the batch for ``top_k``, and has all devices agree before every iteration of a loop.

    Args:
        run: of trees of arrays with samples as their first axis, whose results have it, too.
        batch: the arguments. The first leaf of the first one says how the batch is sharded.
        multiple: where the devices' shares are no multiples of it, XLA divides the work.

    Returns:
        What ``run`` returns.
    """
    first = jax.tree.leaves(batch[0])[0]
    sharding = batch_sharding(first)
    if sharding is None or len(first) % (sharding.num_devices * multiple):
        return run(*batch)
    samples = PartitionSpec(sharding.axes)
    if explicit_sharding(first) is not None:
        batch = jax.sharding.reshard(batch, NamedSharding(sharding.mesh, samples))
    return jax.shard_map(run, mesh=sharding.mesh, in_specs=samples, out_specs=samples, check_vma=False)(*batch)
