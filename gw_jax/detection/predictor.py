"""Detections in single images of any size."""

import sys
from typing import Any

import jax
import numpy as np
from flax import nnx

from gw_jax.detection.data.resize import resized_pixels, target_size
from gw_jax.detection.description import Description
from gw_jax.detection.detections import Detections
from gw_jax.detection.detector import Detector
from gw_jax.detection.finite import detect_finite
from gw_jax.detection.inputs import aligned
from gw_jax.detection.pixels import normalize
from gw_jax.errors import TrainingError


class Predictor:
    """Finds objects in images, each on the canvas for its orientation; a canvas is compiled when it is seen first.

    Args:
        detector: the detector.
        description: how its images are resized and normalised.
    """

    def __init__(self, detector: Detector, description: Description):
        self.description = description
        graphdef, self._state = nnx.split(detector)
        dtype = detector.record.dtype or np.float32

        def detect(state: Any, image: jax.Array, size: jax.Array) -> tuple[Detections, jax.Array]:
            model = nnx.merge(graphdef, state)
            images = normalize(image, size, pixels=description.pixels, dtype=dtype)
            return detect_finite(model, images, aligned(size), size)

        self._detect = jax.jit(detect)
        self._canvases: set[tuple[int, int]] = set()

    def __call__(self, picture: Any) -> tuple[Detections, tuple[int, int]]:
        """The detections in an RGB image of Pillow, as arrays of one image, and its (height, width) after the resize.

        Raises:
            TrainingError: the features of the network are not finite.
        """
        rule = self.description
        size = target_size(picture.height, picture.width, rule.min_side, rule.max_side)
        canvas = self.canvas(size)
        if canvas not in self._canvases:
            self._canvases.add(canvas)
            print(f"compiling for images of up to {canvas[0]} x {canvas[1]} pixels ...", file=sys.stderr, flush=True)
        image = np.zeros((1, *canvas, 3), np.uint8)
        image[0, : size[0], : size[1]] = resized_pixels(picture, size)
        detections, finite = jax.device_get(self._detect(self._state, image, np.array([size], np.int32)))
        if not finite[0]:
            raise TrainingError(
                "The network's features are not finite: its training has diverged, or its weights are damaged. Use an "
                "earlier checkpoint."
            )
        return detections.of_image(0), size

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """The canvas of images of this orientation."""
        shorter, longer = aligned([self.description.min_side, self.description.max_side]).tolist()
        return (shorter, longer) if size[0] <= size[1] else (longer, shorter)
