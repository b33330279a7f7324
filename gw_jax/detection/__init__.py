"""Object detection: Faster and Mask R-CNN with Group Whitening, in static shapes. Needs jax and flax only.

Training a detector needs more: see ``gw_jax.detection.config`` and ``gw_jax.detection.task``.
"""

from gw_jax.detection import ops
from gw_jax.detection.backbone import load_backbone
from gw_jax.detection.detections import Detections
from gw_jax.detection.detector import Detector, create_detector
from gw_jax.detection.inputs import CANVASES, choose_canvas, place_on_canvas
from gw_jax.detection.losses import detector_losses
from gw_jax.detection.options import Sampling
from gw_jax.detection.pixels import normalize
from gw_jax.detection.saved import load_detector, save_detector
from gw_jax.detection.targets import pad_targets
from gw_jax.detection.torch_state import from_torch_state, to_torch_state

__all__ = [
    "CANVASES",
    "Detections",
    "Detector",
    "Sampling",
    "choose_canvas",
    "create_detector",
    "detector_losses",
    "from_torch_state",
    "load_backbone",
    "load_detector",
    "normalize",
    "ops",
    "pad_targets",
    "place_on_canvas",
    "save_detector",
    "to_torch_state",
]
