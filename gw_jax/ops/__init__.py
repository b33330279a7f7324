"""Pure functions of arrays: the mathematics of whitening, without parameters or state."""

from gw_jax.ops.group_whitening import group_whiten
from gw_jax.ops.inverse_sqrt import inverse_sqrt_newton, inverse_sqrt_zca

__all__ = ["group_whiten", "inverse_sqrt_newton", "inverse_sqrt_zca"]
