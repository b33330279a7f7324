"""The beginning and the end of every norm's call: checks, sharding, scale and bias, mask, ReLU, output type."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.ops.checks import as_floating, require_mask_shape
from gw_jax.ops.sharding import replicate, reshard_like, shard_batch_only


class Sized(Protocol):
    """The attributes of a layer that all of these functions read."""

    num_features: int
    dtype: DTypeLike | None


class Norm(Sized, Protocol):
    """Those that :func:`finish` reads."""

    scale: nnx.Param | None
    bias: nnx.Param | None


def prepare(layer: Sized, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Checks ``x`` ``[n, *spatial, c]`` and ``mask`` ``[n, *spatial]``, and returns them sharded along the batch only.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``x`` or ``mask`` has another shape than ``layer`` was made for.
    """
    x = as_floating(x, type(layer).__name__)
    require_num_features(layer, x, layer.num_features)
    require_mask_shape(x, mask)
    return shard_batch_only(x, mask)


def require_num_features(layer: object, x: jax.Array, num_features: int) -> None:
    """Raises ValueError unless the last axis of ``x`` has the channels that ``layer`` was made for."""
    if x.ndim < 2 or x.shape[-1] != num_features:
        raise ValueError(
            f"{type(layer).__name__} was made for {num_features} channels and got shape {x.shape}; it accepts "
            f"[batch, *spatial, {num_features}], channels last."
        )


def output_dtype(layer: Sized, x: jax.Array) -> DTypeLike:
    """The type of the output for the input ``x``."""
    return x.dtype if layer.dtype is None else layer.dtype


def finish(
    layer: Norm, y: jax.Array, x: jax.Array, mask: jax.Array | None, relu: bool, *, is_scaled: bool = False
) -> jax.Array:
    """Applies scale, bias, mask and ReLU to the normalised values.

    Args:
        layer: gives ``scale`` and ``bias`` ``[c]`` and the type of the output.
        y: normalised values ``[n, *spatial, c]``, in the type of the statistics.
        x: the input as the caller gave it; the output has its sharding, and its type unless the layer has one.
        mask: ``[n, *spatial]``, false where the output is zero, or None.
        relu: whether ``max(., 0)`` is applied to the output.
        is_scaled: whether ``y`` was multiplied by ``scale`` already.
    """
    channel = (1,) * (y.ndim - 1) + (y.shape[-1],)
    if layer.scale is not None and not is_scaled:
        y = y * replicate(layer.scale[...]).astype(y.dtype).reshape(channel)
    if layer.bias is not None:
        y = y + replicate(layer.bias[...]).astype(y.dtype).reshape(channel)
    if mask is not None:
        y = jnp.where(mask.astype(bool)[..., None], y, 0)
    y = y.astype(output_dtype(layer, x))
    return reshard_like(jax.nn.relu(y) if relu else y, x)
