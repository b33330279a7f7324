"""Ground truth as padded arrays, and what it refuses."""

import re

import numpy as np
import pytest

from gw_jax.detection.targets import check_targets, pad_targets

BOX = [10.0, 20, 50, 60]
TRIANGLE = [10.0, 20, 50, 20, 30, 60]


def test_arrays_are_padded():
    targets = pad_targets([[BOX, BOX], []], [[3, 80], []], [[[TRIANGLE], [TRIANGLE, TRIANGLE]], []], max_objects=4)
    assert {name: array.shape for name, array in targets.items()} == {
        "boxes": (2, 4, 4),
        "labels": (2, 4),
        "present": (2, 4),
        "edges": (2, 4, 64, 4),
        "parts": (2, 4, 64),
    }
    assert targets["present"].tolist() == [[True, True, False, False], [False] * 4]
    assert targets["labels"][0].tolist() == [3, 80, 0, 0]
    assert (targets["parts"][0] >= 0).sum(1).tolist() == [3, 6, 0, 0]


@pytest.mark.parametrize(
    ("boxes", "labels", "polygons", "message"),
    [
        ([[BOX]], [[1, 2]], None, "Image 0 has 1 boxes and 2 labels"),
        ([[BOX]], [], None, "Boxes are of 1 images, labels of 0"),
        ([[], [BOX] * 3], [[], [1] * 3], None, "Image 1 has 3 objects, and there is room for max_objects=2"),
        ([[[10, 20, 10, 60]]], [[1]], None, "which has no area"),
        ([[[10, 20, 5, 60]]], [[1]], None, "which has no area"),
        ([[[10, 20, np.nan, 60]]], [[1]], None, "finite numbers are needed"),
        ([[[10, 20, np.inf, 60]]], [[1]], None, "finite numbers are needed"),
        ([[BOX]], [[0]], None, "the label 0; 1 to 80 are allowed"),
        ([[BOX]], [[81]], None, "the label 81; 1 to 80 are allowed"),
        ([BOX], [[1]], None, "Image 0 has boxes [10.0, 20, 50, 60]; a list of x1, y1, x2, y2 each is needed, [k, 4]."),
        ([[BOX[:3]] * 4], [[1] * 3], None, "Image 0 has boxes "),
        ([[BOX, BOX[:3]]], [[1] * 2], None, "Image 0 has boxes "),
        ([[BOX]], [[1]], [[]], "Image 0 has 1 boxes and polygons of 0 objects"),
        ([[BOX]], [[1]], [[[[np.nan, *TRIANGLE[1:]]]]], "Image 0: "),
    ],
)
def test_bad_ground_truth_is_named(boxes, labels, polygons, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        pad_targets(boxes, labels, polygons, max_objects=2)
    assert "\n" not in str(error.value)


def test_no_room_is_no_number():
    assert pad_targets([[]], [[]], max_objects=0)["boxes"].shape == (1, 0, 4)
    with pytest.raises(ValueError, match="max_objects=-1; it must be 0 or more"):
        pad_targets([[]], [[]], max_objects=-1)


def test_arrays_of_another_shape_are_refused():
    targets = pad_targets([[BOX]], [[1]], max_objects=2)
    with pytest.raises(ValueError, match="a detector with a mask head needs polygons"):
        check_targets(targets, 1, masks=True)
    with pytest.raises(
        ValueError, match=re.escape("targets['boxes'] has shape (1, 2, 4); for 3 images it must be (3, 2, 4)")
    ):
        check_targets(targets, 3, masks=False)
    with pytest.raises(ValueError, match="not labels, present"):
        check_targets({"boxes": targets["boxes"]}, 1, masks=False)
