"""The weights of the golden networks: they depend on the seed, the key and its shape only."""

import zlib

import numpy as np


def reproducible_array(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One entry of a state dict, in float64 with the values that a float32 file holds."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        array = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("running_mean", "bias"):
        array = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 4 and shape[0] > 1:
        array = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif len(shape) == 2 and shape[0] > 1:
        array = rng.standard_normal(shape) / np.sqrt(shape[1])
    else:
        array = rng.uniform(0.2, 0.6, shape)
    return array.astype(np.float32).astype(np.float64)
