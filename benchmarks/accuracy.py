"""Float32 error of ``group_whiten`` against float64, by number of groups, condition number and iterations.

    python -m benchmarks.accuracy [--json]

The error is the largest difference over the largest value, for two images of 28x28 positions, 2 channels per group, with
the given condition number of the group covariance and a mean of 3 standard deviations.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax import group_whiten
from gw_jax.versions import enable_x64

CONDITIONS = (1.0, 1e2, 1e3, 1e4)
SIZE, CHANNELS_PER_GROUP = 28, 2


def conditioned_images(num_groups: int, condition: float) -> np.ndarray:
    """Two float32 images ``[2, 28, 28, 2 num_groups]`` of the given condition number."""
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.standard_normal((num_groups, num_groups)))
    root = vectors * np.sqrt(np.geomspace(1, 1 / condition, num_groups)) @ vectors.T
    rows = root @ rng.standard_normal((2, num_groups, CHANNELS_PER_GROUP * SIZE * SIZE)) + 3
    blocks = rows.reshape(2, num_groups, CHANNELS_PER_GROUP, SIZE, SIZE).transpose(0, 3, 4, 1, 2)
    return blocks.reshape(2, SIZE, SIZE, -1).astype(np.float32)


def error(num_groups: int, condition: float, num_iterations: int) -> float:
    """The relative error of one case."""
    x = conditioned_images(num_groups, condition)
    y = np.asarray(group_whiten(jnp.asarray(x), num_groups, num_iterations=num_iterations), np.float64)
    with enable_x64():
        truth = np.asarray(group_whiten(jnp.asarray(x, jnp.float64), num_groups, num_iterations=num_iterations))
    return float(np.abs(y - truth).max() / np.abs(truth).max())


def main() -> None:
    """Prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cases = [
        {"num_groups": g, "num_iterations": t, "condition": c, "error": error(g, c, t)}
        for t in (5, 20)
        for g in (8, 16, 64)
        for c in CONDITIONS
    ]
    if args.json:
        print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "cases": cases}))
        return
    for case in cases:
        print(
            "{num_iterations:3d} iterations {num_groups:3d} groups condition {condition:7.0f}: {error:.1e}".format(**case)
        )


if __name__ == "__main__":
    main()
