"""Normalisation of pixels: what weights were trained with, in the description of a model and as a function."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gw_jax.errors import CheckpointError, shown, unknown_name
from gw_jax.ops.exact import quotient
from gw_jax.ops.valid import valid_mask

Channels = Literal["RGB", "BGR"]


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The input ``(pixel - mean) / std`` per channel, pixels from 0 to 255.

    Attributes:
        channels: their order in the images.
        mean: subtracted from each channel.
        std: divides each channel.

    Source: the reference's ``INPUT.TO_BGR255``, ``PIXEL_MEAN`` and ``PIXEL_STD``.
    """

    channels: Channels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __str__(self) -> str:
        return f"{self.channels}, mean {list(self.mean)}, std {list(self.std)}"

    def to_json(self) -> dict[str, Any]:
        """The entry ``pixels`` of a ``config.json``."""
        return {"channels": self.channels, "mean": list(self.mean), "std": list(self.std)}


# Models of PyTorch and of this project, and models of Caffe2.
RGB = Pixels("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
BGR = Pixels("BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))
PIXELS = {"rgb": RGB, "bgr": BGR}


def pixels_of(description: Mapping[str, Any], source: str) -> Pixels:
    """The pixels in a model's ``config.json``: those of its origin, else :data:`RGB`.

    Raises:
        CheckpointError: the entry is damaged.
    """
    origin = description.get("source")
    value = origin.get("pixels") if isinstance(origin, dict) else None
    if value is None:
        return RGB
    pixels = next((known for known in (RGB, BGR) if known.to_json() == value), None)
    if pixels is None:
        raise CheckpointError(
            f"The pixels in the config.json of {source} are {shown(value)}; allowed are {RGB.to_json()} and "
            f"{BGR.to_json()}. Convert the model again."
        )
    return pixels


def normalize(
    rgb: jax.Array | np.ndarray, sizes: Any = None, *, pixels: str = "rgb", dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """RGB bytes as the input of a network: ``(value - mean) / std``, in its order of channels.

    Padding is zero after the normalisation, as in the reference, and not a normalised black.

    Args:
        rgb: ``[n, h, w, 3]`` or, without ``sizes``, any shape that ends in 3; values of 0 to 255.
        sizes: ``[n, 2]``, heights and widths outside of which the result is zero, or None.
        pixels: "rgb" for weights of PyTorch and of this project, "bgr" for weights of Caffe2.
        dtype: type of the result; computed in float32, rounded as by NumPy and the reference.

    Raises:
        ValueError: other ``pixels``, or another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection import normalize
        >>> normalize(jnp.full((1, 2, 2, 3), 255, jnp.uint8), jnp.array([[1, 2]]))[0, :, 0, 0].round(3).tolist()
        [2.249000072479248, 0.0]
    """
    if pixels not in PIXELS:
        raise ValueError(unknown_name("pixels", pixels, PIXELS))
    layout = PIXELS[pixels]
    values = jnp.asarray(rgb).astype(jnp.float32)
    if values.shape[-1:] != (3,) or (sizes is not None and values.ndim != 4):
        needed = "[..., 3]" if sizes is None else "[n, h, w, 3] with sizes"
        raise ValueError(f"normalize got an array of shape {values.shape}; {needed} is needed, in the order RGB.")
    if layout.channels == "BGR":
        values = values[..., ::-1]
    # XLA multiplies by a rounded reciprocal instead. A last digit puts one ReLU of 258,000 on its other side, and changes a
    # gradient by 4e-4.
    std = jnp.broadcast_to(jnp.asarray(layout.std, jnp.float32), values.shape)
    values = quotient(values - jnp.asarray(layout.mean, jnp.float32), std)
    if sizes is not None:
        keep = valid_mask(jnp.asarray(sizes), 1, *values.shape[1:3])
        values = jnp.where(keep[..., None], values, 0)
    return values.astype(dtype)
