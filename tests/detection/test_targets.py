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
        ([[BOX[:3]] * 4], [[1] * 3], None, "Image 0 has the boxes "),
        ([[BOX, BOX[:3]]], [[1] * 2], None, "Image 0 has the boxes "),
        ([[BOX]], [[1]], [[]], "Image 0 has 1 boxes and polygons of 0 objects"),
        ([[BOX]], [[1]], [[[[np.nan, *TRIANGLE[1:]]]]], "Image 0: "),
        ([[BOX]], [[1]], [[TRIANGLE]], "Image 0: A polygon of object 0 is not a flat list"),
        ([[BOX]], [[1]], [[{"counts": "a", "size": [4, 4]}]], "Image 0: Object 0 is a dict; a list of parts is needed"),
        ([BOX], [[1]], None, "Image 0 has the boxes [10.0, 20, 50, 60]; a list of x1, y1, x2, y2 per object"),
        ([[[*BOX, 0.9]]], [[1]], None, "a list of x1, y1, x2, y2 per object is needed"),
        ([np.array([BOX, BOX]).T[:, :1]], [[1]], None, "Image 0 has the boxes array([[10.], [20.], [50.], [60.]]); a list"),
        ([], [], None, "pad_targets got no images"),
        ([["a"]], [[1]], None, "a list of x1, y1, x2, y2 per object is needed"),
        ([[BOX]], [1], None, "Image 0 has the labels 1; a list of integers, one per box"),
        ([[BOX]], [["cat"]], None, "Image 0 has the labels ['cat']; a list of integers"),
    ],
)
def test_bad_ground_truth_is_named(boxes, labels, polygons, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        pad_targets(boxes, labels, polygons, max_objects=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"max_objects": 0}, {"max_objects": 8.0}, {"num_classes": "3"}])
def test_bad_sizes_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pad_targets([[BOX]], [[1]], **options)


def test_arrays_of_another_shape_are_refused():
    targets = pad_targets([[BOX]], [[1]], max_objects=2)
    with pytest.raises(ValueError, match="a detector with a mask head needs polygons"):
        check_targets(targets, 1, masks=True)
    with pytest.raises(
        ValueError, match=re.escape("targets['boxes'] has shape (1, 2, 4); for 3 images it must be (3, 2, 4)")
    ):
        check_targets(targets, 3, masks=False)
    with pytest.raises(ValueError, match="labels from 9 to 9, and the detector has the classes 1 to 4"):
        check_targets(pad_targets([[BOX]], [[9]], max_objects=2), 1, masks=False, num_classes=5)
    with pytest.raises(ValueError, match=re.escape("targets['present'] is of type int32; it must be bool")):
        check_targets({**targets, "present": targets["present"].astype(np.int32)}, 1, masks=False)
    with pytest.raises(ValueError, match="room for 0 objects"):
        check_targets({name: array[:, :0] for name, array in targets.items()}, 1, masks=False)
    with pytest.raises(ValueError, match="targets is a tuple"):
        check_targets(tuple(targets), 1, masks=False)
    with pytest.raises(ValueError, match="not labels, present"):
        check_targets({"boxes": targets["boxes"]}, 1, masks=False)
