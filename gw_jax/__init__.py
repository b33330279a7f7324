"""Group Whitening for JAX and Flax: the operation, the layers, the networks.

Importing this package needs jax and flax only and touches no accelerator. The trainer (``gw_jax.train``) and the data
pipeline (``gw_jax.data``) need the extra ``examples``.
"""

from gw_jax import analysis, convert, linen
from gw_jax._version import __version__
from gw_jax.models import create_model, list_models, load_pretrained, save_pretrained
from gw_jax.nn import BatchNorm, BatchWhitening, GroupNorm, GroupWhitening, InstanceNorm, LayerNorm, make_norm
from gw_jax.ops import group_whiten

__all__ = [
    "BatchNorm",
    "BatchWhitening",
    "GroupNorm",
    "GroupWhitening",
    "InstanceNorm",
    "LayerNorm",
    "__version__",
    "analysis",
    "convert",
    "create_model",
    "group_whiten",
    "linen",
    "list_models",
    "load_pretrained",
    "make_norm",
    "save_pretrained",
]
