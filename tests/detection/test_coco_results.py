import json

import numpy as np
import pytest

mask_tools = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed; extra detection")

from gw_jax.detection import Detections  # noqa: E402
from gw_jax.detection.coco_results import coco_results, original_boxes  # noqa: E402
from gw_jax.detection.paste import paste_mask  # noqa: E402
from gw_jax.errors import TrainingError  # noqa: E402


def detections(**fields):
    rng = np.random.default_rng(0)
    arrays = {
        "boxes": np.array([[10, 20, 109, 139], [0, 0, 332, 199.5], [5, 5, 5, 5]], np.float32),
        "scores": np.array([0.9, 0.30000001192092896, 0.2], np.float32),
        "labels": np.array([2, 1, 1], np.int32),
        "present": np.array([True, True, False]),
        "masks": rng.uniform(size=(3, 28, 28)).astype(np.float32),
    }
    return Detections(**{**arrays, **fields})


def test_boxes_are_scaled_before_their_sides_are_taken():
    first, second = coco_results(detections(masks=None), (200, 333), (100, 222), 5, [11, 90])
    ratio = np.float32(222 / 333)
    assert first["bbox"] == [float(10 * ratio), 10.0, float(109 * ratio - 10 * ratio + 1), 139 / 2 - 10 + 1]
    assert second["bbox"][3] == 199.5 / 2 + 1
    assert (first["category_id"], second["category_id"]) == (90, 11)
    assert (first["image_id"], second["score"]) == (5, 0.30000001192092896)
    assert "segmentation" not in first
    assert json.loads(json.dumps([first, second])) == [first, second]


def test_masks_are_in_the_original_image():
    found = detections()
    results = coco_results(found, (200, 400), (50, 100), 5, [11, 90])
    for row, result in enumerate(results):
        expected = paste_mask(found.masks[row], original_boxes(found.boxes[row], (200, 400), (50, 100)), (50, 100))
        assert expected.any()
        np.testing.assert_array_equal(mask_tools.decode(result["segmentation"]), expected)


@pytest.mark.parametrize("name", ["boxes", "scores", "masks"])
def test_values_that_are_not_finite_are_refused(name):
    arrays = getattr(detections(), name).copy()
    arrays[2] = np.nan
    assert len(coco_results(detections(**{name: arrays}), (200, 400), (50, 100), 5, [11, 90])) == 2
    arrays[1] = np.nan
    with pytest.raises(TrainingError, match="image 5 are not finite: it has diverged"):
        coco_results(detections(**{name: arrays}), (200, 400), (50, 100), 5, [11, 90])
