"""Group Whitening for JAX and Flax: the operation, the layers, the networks.

Importing this package needs jax and flax only and touches no accelerator. The trainer (``gw_jax.train``) and the data
pipeline (``gw_jax.data``) need the extra ``examples``.
"""

import sys

try:
    # The first import: it names a JAX or Flax that is too old.
    from gw_jax import versions as versions  # noqa: I001

    from gw_jax import analysis, convert, linen, serving
    from gw_jax._version import __version__
    from gw_jax.models import create_model, list_models, load_pretrained, save_pretrained
    from gw_jax.nn import (
        BatchNorm,
        BatchWhitening,
        GroupNorm,
        GroupWhitening,
        InstanceNorm,
        LayerNorm,
        make_norm,
        swap_norms,
    )
    from gw_jax.ops import group_whiten
except Exception:
    # ``python -m gw_jax.doctor`` imports this file first, and reports what is broken.
    if "gw_jax.doctor" not in sys.orig_argv:
        raise

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
    "serving",
    "swap_norms",
]
