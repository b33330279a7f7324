"""Group Whitening for JAX and Flax: the operation, the layers, the networks.

Importing this package takes jax and flax only and touches no accelerator. The trainer (``gw_jax.train``) and the data
pipeline (``gw_jax.data``) need the extra ``examples``.
"""

from gw_jax import linen
from gw_jax._version import __version__
from gw_jax.models import create_model
from gw_jax.nn import BatchNorm, GroupNorm, GroupWhitening, make_norm
from gw_jax.ops import group_whiten

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "GroupWhitening",
    "__version__",
    "create_model",
    "group_whiten",
    "linen",
    "make_norm",
]
