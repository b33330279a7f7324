"""Preparation of data sets, once, before they are trained on."""
