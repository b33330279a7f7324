"""Flax NNX layers over the operations, and the factory that makes them by name."""

from gw_jax.nn.batch_norm import BatchNorm
from gw_jax.nn.batch_whitening import BatchWhitening
from gw_jax.nn.dropout import Dropout
from gw_jax.nn.group_norm import GroupNorm, InstanceNorm
from gw_jax.nn.group_whitening import GroupWhitening
from gw_jax.nn.layer_norm import LayerNorm
from gw_jax.nn.make_norm import NORM_NAMES, Identity, make_norm, norm_options

__all__ = [
    "NORM_NAMES",
    "BatchNorm",
    "BatchWhitening",
    "Dropout",
    "GroupNorm",
    "GroupWhitening",
    "Identity",
    "InstanceNorm",
    "LayerNorm",
    "make_norm",
    "norm_options",
]
