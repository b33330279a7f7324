"""Inputs and errors for tests of whitening."""

import numpy as np


def images(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def relative_error(result, truth):
    result, truth = np.asarray(result, np.float64), np.asarray(truth, np.float64)
    return np.abs(result - truth).max() / np.abs(truth).max()
