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

# The layers whose size is the number of classes.
PREDICTORS = ("box_head.logits.", "box_head.deltas.", "mask_head.logits.")

if TYPE_CHECKING:
    from gw_jax.detection.config import DetectionConfig


def read_weights(directory: pathlib.Path, config: "DetectionConfig") -> Weights:
    """Reads a detector, or an ImageNet model for the backbone; what is not read keeps its initial values.

    With ``config.init_new_predictors`` these are the :data:`PREDICTORS`, and the detector may have other classes.

    Args:
        directory: written by ``mode=export``, ``python -m gw_jax.detection.convert`` or ``python -m gw_jax.convert``.
        config: the run.

    Raises:
        CheckpointError: the directory is damaged, or the model is not that of the backbone.
        ConfigError: it holds another detector, its weights were trained with other pixel values, or what is to be evaluated
            would be random in part.
    """
    if config.mode == "evaluate" and config.init_new_predictors:
        raise ConfigError(
            "config.init_new_predictors=True with config.mode=evaluate would evaluate random predictors. Leave it out."
        )
    if not holds(directory, DETECTOR):
        if config.init_new_predictors and holds(directory, MODEL):
            raise ConfigError(
                f"{directory} holds a classifier, and config.init_new_predictors=True has no effect on it: only the "
                "backbone is read, and all heads start at random. Leave it out."
            )
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
    arguments = config.model_arguments()
    if config.init_new_predictors:
        arguments["num_classes"] = detector.arguments["num_classes"]
    _require_same(directory, detector.arguments, arguments)
    _require_pixels(directory, pixels_of(description, str(directory)), config)
    arrays: dict[str, np.ndarray] = read_arrays(directory, MODEL_FILE, variables(detector))
    if config.init_new_predictors:
        arrays = {path: array for path, array in arrays.items() if not path.startswith(PREDICTORS)}
    return Weights(arrays)


def _require_same(directory: pathlib.Path, stored: dict[str, Any], arguments: dict[str, Any]) -> None:
    differences = []
    for name, value in arguments.items():
        there = stored[name]
        # No options and none given are the same.
        if (there or None) != (value or None):
            differences.append(f"{name} is {there!r} there and {value!r} here")
    if differences:
        same_classes = stored["num_classes"] == arguments["num_classes"]
        hint = "" if same_classes else " (For other classes, set config.init_new_predictors=True.)"
        raise ConfigError(
            f"The detector in {directory} is not that of config.model: {'; '.join(differences)}. Set the fields to what is "
            f"there.{hint}"
        )


def _require_pixels(directory: pathlib.Path, found: Pixels, config: "DetectionConfig") -> None:
    if found != PIXELS[config.pixels]:
        name = next(name for name, pixels in PIXELS.items() if pixels == found)
        raise ConfigError(
            f"The weights in {directory} were trained on {found.channels} images with mean {list(found.mean)}, and "
            f"config.pixels={config.pixels!r} gives others; set config.pixels={name!r}."
        )
