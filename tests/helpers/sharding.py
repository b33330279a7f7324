"""The sharding of a batch over all devices."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def batch_sharding():
    """Of the first axis, on a mesh of automatic axes as the trainer makes it."""
    return NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
