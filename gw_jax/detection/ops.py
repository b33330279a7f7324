"""The operations of the detector: pure functions of boxes ``x1 y1 x2 y2``, in pixels with inclusive ends."""

from gw_jax.detection.levels import level_of
from gw_jax.detection.matching import match
from gw_jax.detection.paste import paste_mask
from gw_jax.detection.polygons import mask_targets
from gw_jax.ops.boxes import decode, encode, iou
from gw_jax.ops.nms import nms
from gw_jax.ops.roi_align import roi_align

__all__ = ["decode", "encode", "iou", "level_of", "mask_targets", "match", "nms", "paste_mask", "roi_align"]
