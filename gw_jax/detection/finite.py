"""Detections of a network that may have diverged: without a check it finds nothing, and no error says why."""

import functools
import operator

import jax
import jax.numpy as jnp

from gw_jax.detection.detections import Detections
from gw_jax.detection.detector import Detector
from gw_jax.tree import variables


def detect_finite(
    detector: Detector, images: jax.Array, valid: jax.Array, sizes: jax.Array
) -> tuple[Detections, jax.Array]:
    """:meth:`Detector.detect`, and for each image whether its features and all parameters are finite: bool ``[n]``.

    A score that is not a number exceeds no threshold.
    """
    pyramid = detector.pyramid(images, valid)
    boxes, _, present = detector.propose(pyramid, valid, sizes)
    detections = detector.detect_in(pyramid, valid, sizes, boxes, present)
    parameters = [jnp.isfinite(leaf).all() for leaf in variables(detector).values()]
    features = [jnp.isfinite(level).all((1, 2, 3)) for level in pyramid.values()]
    return detections, functools.reduce(operator.and_, [*parameters, *features])
