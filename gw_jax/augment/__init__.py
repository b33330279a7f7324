"""Augmentation and normalisation of batches of images on the device."""
