"""``python -m gw_jax.doctor``: checks an installation, the devices, and Group Whitening on them."""
