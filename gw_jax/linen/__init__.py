"""Whitening layers for models written in Flax Linen."""

from gw_jax.linen.group_whitening import GroupWhitening

__all__ = ["GroupWhitening"]
