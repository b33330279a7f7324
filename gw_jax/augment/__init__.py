"""Augmentation and normalisation of batches of images on the device."""

from gw_jax.augment.check import check_augment

__all__ = ["check_augment"]
