"""Single norms of the reference as layers of this project."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax.convert.filling import fill
from gw_jax.convert.layout import entries
from gw_jax.nn import make_norm
from gw_jax.nn.reference_norms import REFERENCE_NORMS, translate_norm_cfg
from gw_jax.tree import variables


def norm_from_torch(
    norm: str, num_features: int, norm_cfg: dict[str, Any] | None, state: Mapping[str, np.ndarray], **options: Any
) -> nnx.Module:
    """The reference's norm as a layer, with the parameters and buffers of ``state``.

    Args:
        norm: the reference's name, as on its ``--norm``.
        num_features: channels.
        norm_cfg: its options, as on its ``--norm-cfg``; the reference's defaults stand for those left out.
        state: its state dict, names and arrays. Buffers may be left out all together; they have their initial values then.
        **options: further arguments of the layer: ``dtype``, ``param_dtype`` (the type of the arrays of ``state``, if not
            given), ``group_size``, ``axis_name``.

    Returns:
        The layer, in training mode like every new one. :func:`to_torch_state` gives ``state`` back.

    Raises:
        ValueError: an unknown norm or option.
        CheckpointError: an entry is missing, left over, misshapen or not finite.
    """
    name, translated = translate_norm_cfg(norm, norm_cfg)
    floating = [value.dtype for value in state.values() if np.issubdtype(value.dtype, np.floating)]
    if name != "none":
        default = jnp.zeros((), floating[0]).dtype if floating else jnp.zeros(()).dtype
        options.setdefault("param_dtype", default)
    layer: Any = make_norm(name, num_features, rngs=nnx.Rngs(0), **translated, **options)
    weight = state.get("weight")
    # The layer itself takes any number of axes; the reference's shape of weight and bias does not.
    layer.reference_dim = (norm_cfg or {}).get("dim", 4) if weight is None or weight.ndim == 1 else weight.ndim
    table = entries(layer)
    shapes = variables(layer)
    if not any(entry.key in state for entry in table if not entry.trained):
        table = [entry for entry in table if entry.trained]
        shapes = {entry.path: shapes[entry.path] for entry in table}
    arrays = fill(table, dict(state), shapes, f"the state of {norm} ({REFERENCE_NORMS[norm]})")
    for path, value in arrays.items():
        getattr(layer, path)[...] = jnp.asarray(value)
    return layer
