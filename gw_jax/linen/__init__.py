"""Whitening layers for models written in Flax Linen."""

from gw_jax.linen.group_whitening import GroupWhitening
from gw_jax.linen.swap import swap_norms

__all__ = ["GroupWhitening", "swap_norms"]
