import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gw_jax.detection import draw_result as draw_result_module
from gw_jax.detection.data.scenes import Scene
from gw_jax.detection.draw import DrawnObject, draw_objects
from gw_jax.detection.draw_result import draw_result
from gw_jax.errors import DataError
from tests.detection.coco_files import write_set

GREY = (90, 90, 90)


def region(top, left, height, width):
    return lambda: (np.ones((height, width), bool), slice(top, top + height), slice(left, left + width))


def test_a_box_covers_its_pixels_and_a_mask_is_blended():
    picture = Image.new("RGB", (800, 600), GREY)
    drawn = np.asarray(draw_objects(picture, [DrawnObject((100, 200, 399, 449), "cat 0.98", 1, region(250, 150, 100, 80))]))
    assert drawn.shape == (600, 800, 3)
    changed = (drawn != np.array(GREY)).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (columns[0], columns[-1], rows[-1]) == (100, 399, 449)
    # The name stands above the box.
    assert 160 < rows[0] < 200
    inside = drawn[250:350, 150:230].reshape(-1, 3)
    assert (inside == inside[0]).all()
    assert not np.array_equal(inside[0], GREY)
    # Nothing else is covered.
    assert not changed[205:250, 105:395].any()
    assert (np.asarray(picture) == np.array(GREY)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 3), (60, 40), (4000, 3000)])
def test_pictures_of_any_size(size):
    """Lines and letters grow with the picture, and small pictures are enlarged."""
    picture = Image.new("RGB", size, GREY)
    box = (-5, -5, size[0] + 5, size[1] + 5)
    drawn = draw_objects(picture, [DrawnObject(box, "a name that is longer than the picture", 3, region(0, 0, 1, 1))])
    assert max(drawn.size) <= max(2400, *size)
    assert min(drawn.size) >= min(320, 2400 * min(size) // max(size))
    assert drawn.width * size[1] == drawn.height * size[0]


def scene(place):
    import io

    file = io.BytesIO()
    Image.fromarray(np.full((60, 80, 3), 40 * place, np.uint8)).save(file, "PNG")
    return Scene(
        image=file.getvalue() if place else b"damaged",
        image_id=[11, 12, 20, 31][place],
        file_name="",
        height=60,
        width=80,
        boxes=np.array([[10.0, 10, 49, 39]]),
        labels=np.array([2], np.int32),
        polygons=[[np.array([10.0, 10, 50, 10, 50, 40])]],
    )


class Records(list):
    num_objects = np.ones(4, np.int32)


def test_ground_truth_stands_beside_detections(tmp_path):
    scenes = SimpleNamespace(categories=write_set(tmp_path).categories, evaluation=Records(map(scene, range(4))))
    assert draw_result(scenes, tmp_path) is None
    (tmp_path / "detections-5.json").write_text("[")
    with pytest.raises(DataError, match=r"detections-5\.json cannot be read"):
        draw_result(scenes, tmp_path)
    found = {"image_id": 12, "category_id": 7, "bbox": [10, 10, 40, 30], "score": 0.9}
    (tmp_path / "detections-10.json").write_text(json.dumps([found, {**found, "score": 0.4}]))
    path = draw_result(scenes, tmp_path)
    sheet = np.asarray(Image.open(path))
    assert path.name == "detections.png"
    # Three of four images can be read: pairs of panels of 300 pixels in two rows.
    assert sheet.shape[1] > 4 * 300
    panels = sheet[40:260, 8:308].astype(int), sheet[40:260, 312:612].astype(int)
    assert panels[0].std() > 5
    assert panels[1].std() > 5
    # Only the ground truth has a mask.
    assert abs(panels[0] - panels[1]).max() > 50
    (tmp_path / "detections-20.json").write_text("[]")
    draw_result(scenes, tmp_path)
    empty = np.asarray(Image.open(path))[40:260, 312:612]
    assert np.unique(empty.reshape(-1, 3), axis=0).shape[0] <= 3


def test_the_title_says_why_no_detections_are_drawn(tmp_path, monkeypatch):
    scenes = SimpleNamespace(categories=write_set(tmp_path).categories, evaluation=Records(map(scene, range(4))))
    found = {"image_id": 12, "category_id": 7, "bbox": [10, 10, 40, 30]}
    titles = []
    monkeypatch.setattr(draw_result_module, "_sheet", lambda panels, title: titles.append(title) or Image.new("L", (1, 1)))
    for step, scores in enumerate(((0.2, 0.34), (0.34, 0.5), ())):
        (tmp_path / f"detections-{step}.json").write_text(json.dumps([{**found, "score": score} for score in scores]))
        draw_result(scenes, tmp_path)
    assert titles == [
        "step 0: none here, the highest score is 0.34",
        "step 1",
        "step 2: none here, the highest score is 0.00",
    ]
