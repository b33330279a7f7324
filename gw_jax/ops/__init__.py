"""Pure functions of arrays: the mathematics of whitening, without parameters or state."""

from gw_jax.ops.group_whitening import group_whiten
from gw_jax.ops.inverse_sqrt import inverse_sqrt_newton, inverse_sqrt_zca
from gw_jax.ops.kernel_check import check_kernels

__all__ = ["check_kernels", "group_whiten", "inverse_sqrt_newton", "inverse_sqrt_zca"]
