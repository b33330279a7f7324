"""The golden data's table of typical mistakes: each of them, put in, is caught by a cheap file.

The other ones of the table are caught by ``tests/nn/test_golden_norms.py`` (Newton steps, epsilon in Group Whitening and in
frozen batch norms) and by ``test_end_to_end_golden.py`` (a ReLU after every convolution).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection import pooler
from gw_jax.ops import nms as nms_module
from tests.detection import golden

pytestmark = pytest.mark.usefixtures("quick")


def pooled():
    arrays = golden.load("ops/multilevel_pooler")
    pyramid = {name: golden.nhwc(arrays[f"features_{name}_nchw"]) for name in pooler.STRIDES}
    found = jax.jit(lambda pyramid, boxes: pooler.pool(pyramid, jnp.array([[128, 192]]), boxes, 7))(
        pyramid, arrays["boxes"][None]
    )
    return np.asarray(found[0]), golden.nhwc(arrays["output_7"])


def test_half_pixel_roi_align(monkeypatch):
    found, expected = pooled()
    assert np.abs(found - expected).max() <= 1e-5
    original = pooler.roi_align_levels

    def aligned(features, boxes, levels, scales, *arguments, **options):
        return original(features, boxes - 0.5 / jnp.asarray(scales)[levels][:, None], levels, scales, *arguments, **options)

    monkeypatch.setattr(pooler, "roi_align_levels", aligned)
    found, _ = pooled()
    # The largest values are 4 or so.
    assert np.abs(found - expected).max() > 0.1


def kept(case):
    arrays = golden.part(golden.load("ops/nms"), case)
    found = jax.jit(lambda boxes, scores: nms_module.nms(boxes, scores, 0.7))(arrays["boxes"], arrays["scores"])
    return list(np.flatnonzero(found)), list(arrays["keep_0.7"])


def without_one(a, b):
    """IoU of boxes ``[4, n]`` and ``[4, m]`` whose sizes lack the +1."""
    width = jnp.maximum(jnp.minimum(a[2, :, None], b[2]) - jnp.maximum(a[0, :, None], b[0]), 0)
    height = jnp.maximum(jnp.minimum(a[3, :, None], b[3]) - jnp.maximum(a[1, :, None], b[1]), 0)
    area_a, area_b = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / jnp.maximum(area_a[:, None] + area_b - width * height, 1e-9)


def test_nms_without_one(monkeypatch):
    found, expected = kept("clustered_300")
    assert found == expected
    monkeypatch.setattr(nms_module, "iou_of_columns", without_one)
    found, expected = kept("clustered_300")
    assert found != expected


def test_nms_that_suppresses_at_the_threshold(monkeypatch):
    found, expected = kept("exact_threshold")
    assert found == expected
    original = nms_module.iou_of_columns
    monkeypatch.setattr(nms_module, "iou_of_columns", lambda a, b: original(a, b) + 1e-6)
    found, expected = kept("exact_threshold")
    assert found != expected
