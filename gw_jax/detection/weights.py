"""Weights of a detector, or of an ImageNet model for its backbone, from which a run starts."""

import pathlib
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from gw_jax.detection.backbone import read_backbone
from gw_jax.detection.pixels import PIXELS, Pixels, pixels_of
from gw_jax.detection.saved import abstract_detector
from gw_jax.errors import CheckpointError, ConfigError, one_line
from gw_jax.models.saved_files import DETECTOR, MODEL, MODEL_FILE, holds, read_arrays, read_config
from gw_jax.train.task import Weights
from gw_jax.tree import variables

if TYPE_CHECKING:
    from gw_jax.detection.config import DetectionConfig


def read_weights(directory: pathlib.Path, config: "DetectionConfig") -> Weights:
    """Reads a whole detector, or an ImageNet model for the backbone; the heads then keep their initial values.

    Args:
        directory: written by ``mode=export``, ``python -m gw_jax.detection.convert`` or ``python -m gw_jax.convert``.
        config: the run.

    Raises:
        CheckpointError: the directory is damaged, or the model is not that of the backbone.
        ConfigError: it holds another detector, its weights were trained with other pixel values, or it holds no detector
            although one is to be evaluated.
    """
    if not holds(directory, DETECTOR):
        if config.mode == "evaluate" and holds(directory, MODEL):
            raise ConfigError(
                f"{directory} holds a classifier, and config.mode=evaluate would evaluate random heads on its backbone. "
                "Give a detector, or train one from it."
            )
        weights = read_backbone(directory, abstract_detector(config.model_arguments(), None, jnp.float32))
        _require_pixels(directory, weights.pixels, config)
        return Weights(weights.arrays)
    description = read_config(directory, DETECTOR)
    try:
        detector = abstract_detector(description[DETECTOR], None, jnp.float32)
    except Exception as error:  # The file decides which of create_detector's errors comes.
        raise CheckpointError(f"The detector of {directory} cannot be made: {one_line(str(error))}") from error
    # With the defaults of arguments that the file leaves out.
    _require_same(directory, detector.arguments, config.model_arguments())
    _require_pixels(directory, pixels_of(description, str(directory)), config)
    arrays: dict[str, np.ndarray] = read_arrays(directory, MODEL_FILE, variables(detector))
    return Weights(arrays)


def _require_same(directory: pathlib.Path, stored: dict[str, Any], arguments: dict[str, Any]) -> None:
    differences = []
    for name, value in arguments.items():
        there = stored[name]
        # No options and none given are the same.
        if (there or None) != (value or None):
            differences.append(f"{name} is {there!r} there and {value!r} here")
    if differences:
        raise ConfigError(
            f"The detector in {directory} is not that of config.model: {'; '.join(differences)}. Set the fields to what is "
            "there."
        )


def _require_pixels(directory: pathlib.Path, found: Pixels, config: "DetectionConfig") -> None:
    if found != PIXELS[config.pixels]:
        name = next(name for name, pixels in PIXELS.items() if pixels == found)
        raise ConfigError(
            f"The weights in {directory} were trained on {found.channels} images with mean {list(found.mean)}, and "
            f"config.pixels={config.pixels!r} gives others; set config.pixels={name!r}."
        )
