"""The entries of the reference's detectors: names, shapes and order of its state dicts, and where they are in ours.

Importing this module registers them with :mod:`gw_jax.convert.entries`, which reads and writes by one table.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gw_jax.convert.entries import Entry, entries, linear_entries, register, vector_entry
from gw_jax.detection.anchors import cell_anchors
from gw_jax.detection.detector import Detector
from gw_jax.detection.heads import BOX_SIZE
from gw_jax.detection.layers import ConvNorm, Deconv2x2
from gw_jax.models import ResNet

# Prefixes of the names of the backbone, of the pyramid, and of the heads.
BODY = "backbone.body."
FPN = "backbone.fpn."
ANCHORS = "rpn.anchor_generator.cell_anchors."
BOX_FEATURES = "roi_heads.box.feature_extractor."
MASK_FEATURES = "roi_heads.mask.feature_extractor."


@register(ConvNorm)
def _conv_norm(layer: ConvNorm, key: str, path: str, dim: int) -> Iterator[Entry]:
    """A bare convolution, or a sequence of a convolution and a norm."""
    if layer.norm is None:
        yield from entries(layer.conv, key, f"{path}conv.")
    else:
        yield from entries(layer.conv, f"{key}0.", f"{path}conv.")
        yield from entries(layer.norm, f"{key}1.", f"{path}norm.")


@register(Deconv2x2)
def _deconv(layer: Deconv2x2, key: str, path: str, dim: int) -> Iterator[Entry]:
    """Its weight is ``i o h w`` there, ``h w i o`` here."""
    height, width, inputs, outputs = layer.kernel.shape
    shape = (inputs, outputs, height, width)
    yield Entry(f"{key}weight", shape, f"{path}kernel", lambda v: v.transpose(2, 3, 0, 1))
    yield vector_entry(f"{key}bias", f"{path}bias", (outputs,))


@register(Detector)
def _detector(detector: Detector, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield from _body(detector.backbone, f"{key}{BODY}", f"{path}backbone.")
    for level, (inner, layer) in enumerate(zip(detector.fpn.inner, detector.fpn.layer, strict=True)):
        yield from entries(inner, f"{key}{FPN}fpn_inner{level + 1}.", f"{path}fpn.inner.{level}.")
        yield from entries(layer, f"{key}{FPN}fpn_layer{level + 1}.", f"{path}fpn.layer.{level}.")
    for level, anchors in enumerate(np.asarray(cell_anchors(), np.float32)):
        name = f"{key}{ANCHORS}{level}"
        yield Entry(name, anchors.shape, "", lambda v: v, trained=False, constant=anchors)
    for name, layer in (("conv", "conv"), ("cls_logits", "logits"), ("bbox_pred", "deltas")):
        yield from entries(getattr(detector.rpn_head, layer), f"{key}rpn.head.{name}.", f"{path}rpn_head.{layer}.")
    yield from _box_head(detector.box_head, key, f"{path}box_head.")
    if detector.mask_head is not None:
        yield from _mask_head(detector.mask_head, key, f"{path}mask_head.")


def _body(model: ResNet, key: str, path: str) -> Iterator[Entry]:
    """The backbone: names as in the classifiers, with the stem apart and the shortcut first in a block."""
    yield from entries(model.stem_conv, f"{key}stem.conv1.", f"{path}stem_conv.")
    yield from entries(model.stem_norm, f"{key}stem.bn1.", f"{path}stem_norm.")
    for number in range(1, 5):
        for index, block in enumerate(getattr(model, f"stage{number}")):
            first = f"{key}layer{number}.{index}."
            table = list(entries(block, first, f"{path}stage{number}.{index}."))
            # The sort is stable.
            yield from sorted(table, key=lambda entry: not entry.key.startswith(f"{first}downsample."))


def _box_head(head: Any, key: str, path: str) -> Iterator[Entry]:
    features = head.fc6.kernel.shape[0] // BOX_SIZE**2
    for index, layer in enumerate(head.convs):
        # Convolutions and norms are numbered in one sequence.
        first = index if layer.norm is None else 2 * index
        where = f"{path}convs.{index}."
        yield from entries(layer.conv, f"{key}{BOX_FEATURES}xconvs.{first}.", f"{where}conv.")
        if layer.norm is not None:
            yield from entries(layer.norm, f"{key}{BOX_FEATURES}xconvs.{first + 1}.", f"{where}norm.")
    yield from linear_entries(head.fc6, f"{key}{BOX_FEATURES}fc6.", f"{path}fc6.", (BOX_SIZE, BOX_SIZE, features))
    if head.fc7 is not None:
        yield from linear_entries(head.fc7, f"{key}{BOX_FEATURES}fc7.", f"{path}fc7.")
    yield from linear_entries(head.logits, f"{key}roi_heads.box.predictor.cls_score.", f"{path}logits.")
    yield from linear_entries(head.deltas, f"{key}roi_heads.box.predictor.bbox_pred.", f"{path}deltas.")


def _mask_head(head: Any, key: str, path: str) -> Iterator[Entry]:
    for index, layer in enumerate(head.convs):
        yield from entries(layer, f"{key}{MASK_FEATURES}mask_fcn{index + 1}.", f"{path}convs.{index}.")
    predictor = f"{key}roi_heads.mask.predictor."
    yield from entries(head.deconv, f"{predictor}conv5_mask.", f"{path}deconv.")
    yield from entries(head.logits, f"{predictor}mask_fcn_logits.", f"{path}logits.")
