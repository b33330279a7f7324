"""Flax NNX layers over the operations, and the factory that makes them by name."""

from gw_jax.nn.batch_norm import BatchNorm
from gw_jax.nn.batch_whitening import BatchWhitening
from gw_jax.nn.frozen_batch_norm import FrozenBatchNorm
from gw_jax.nn.group_whitening import GroupWhitening
from gw_jax.nn.make_norm import NORM_NAMES, AnyNormName, Identity, Norm, NormName, make_norm, norm_options
from gw_jax.nn.per_sample_norms import GroupNorm, InstanceNorm, LayerNorm
from gw_jax.nn.swap import swap_norms

__all__ = [
    "NORM_NAMES",
    "AnyNormName",
    "BatchNorm",
    "BatchWhitening",
    "FrozenBatchNorm",
    "GroupNorm",
    "GroupWhitening",
    "Identity",
    "InstanceNorm",
    "LayerNorm",
    "Norm",
    "NormName",
    "make_norm",
    "norm_options",
    "swap_norms",
]
