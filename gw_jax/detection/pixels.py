"""Normalisations of pixels that the weights of a backbone were trained with."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from gw_jax.errors import CheckpointError, shown

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
