"""Checks of inputs that all layers share."""

import jax
from flax import nnx


def require_num_features(layer: nnx.Module, x: jax.Array, num_features: int) -> None:
    """Raises ValueError unless the last axis of ``x`` has the channels that ``layer`` was made for."""
    if x.ndim < 2 or x.shape[-1] != num_features:
        raise ValueError(
            f"{type(layer).__name__} was made for {num_features} channels and got shape {x.shape}; it takes "
            f"[batch, *spatial, {num_features}], channels last."
        )
