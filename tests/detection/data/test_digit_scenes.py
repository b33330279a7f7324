import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from gw_jax.detection.data import digit_scenes
from gw_jax.detection.data.digit_scenes import SPLITS, make_scene, write_digit_scenes

NUM_SCENES = {"train": 100, "validation": 50}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The first scenes of the set as files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_scenes, "SPLITS", NUM_SCENES)
        return write_digit_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def scenes():
    return {split: [make_scene(split, index) for index in range(count)] for split, count in NUM_SCENES.items()}


def annotations_of(content, image_id):
    return [annotation for annotation in content["annotations"] if annotation["image_id"] == image_id]


@pytest.mark.parametrize("split", SPLITS)
def test_files_hold_the_scenes_with_exact_masks_for_pycocotools(written, scenes, split, capsys):
    json_path, folder = written[split]
    coco = COCO(json_path)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(digit_scenes.NAMES)
    assert sorted(coco.getImgIds()) == list(range(1, NUM_SCENES[split] + 1))
    # The last one has a crowd in the file, since the set is shortened here.
    for number, scene in enumerate(scenes[split][:-1], 1):
        (entry,) = coco.loadImgs(number)
        image = Image.open(folder / entry["file_name"])
        np.testing.assert_array_equal(np.array(image), scene.image)
        assert (entry["width"], entry["height"]) == image.size
        found = coco.loadAnns(coco.getAnnIds(number))
        assert [annotation["category_id"] - 1 for annotation in found] == scene.labels
        for annotation, mask in zip(found, scene.masks, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
            encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert annotation["bbox"] == coco_mask.toBbox(encoded).tolist()
            assert annotation["area"] == mask.sum()
            assert not annotation["iscrowd"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_last_scene_has_a_crowd_that_no_digit_covers(written, split):
    content = json.loads(written[split][0].read_text())
    crowds = [annotation for annotation in content["annotations"] if annotation["iscrowd"]]
    assert [crowd["image_id"] for crowd in crowds] == [NUM_SCENES[split]]
    (crowd,) = crowds
    mask = coco_mask.decode(coco_mask.frPyObjects(crowd["segmentation"], *crowd["segmentation"]["size"]))
    assert mask.sum() == crowd["area"] > 500
    for annotation in annotations_of(content, crowd["image_id"]):
        if not annotation["iscrowd"]:
            other = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *mask.shape))
            assert not (coco_mask.decode(other) & mask).any()


def test_scenes_are_as_described(scenes):
    both = [scene for split in scenes.values() for scene in split]
    assert {scene.image.shape for scene in both} == {(96, 128, 3), (128, 96, 3)}
    assert {len(scene.labels) for scene in both} == {0, 1, 2, 3, 4, 5}
    assert {label for scene in both for label in scene.labels} == set(range(10))
    for split in SPLITS:
        assert sum(not scene.labels for scene in scenes[split]) == NUM_SCENES[split] // 50
    masks = [mask for scene in both for mask in scene.masks]
    longest = [max(np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1)) for mask in masks]
    # A digit of which the ends are hidden is shorter.
    assert min(longest) > 10
    assert max(longest) <= 80
    assert np.mean(np.array(longest) >= 28) > 0.95


def test_masks_do_not_overlap_and_some_digits_are_covered(scenes, monkeypatch):
    covered = 0
    for scene in scenes["train"]:
        assert not scene.masks or np.sum(scene.masks, 0).max() == 1
    whole = []
    monkeypatch.setattr(digit_scenes._Painter, "_leaves_enough", recording(whole))
    for index in range(40):
        whole.clear()
        scene = make_scene("train", index)
        visible = [int(mask.sum()) for mask in scene.masks]
        assert all(0.6 * area <= seen <= area for seen, area in zip(visible, whole, strict=True))
        covered += sum(seen < area for seen, area in zip(visible, whole, strict=True))
    assert 5 < covered < 40


def recording(whole):
    original = digit_scenes._Painter._leaves_enough

    def leaves_enough(painter, ink, covers):
        accepted = original(painter, ink, covers)
        if accepted:
            whole.append(int(ink.sum()))
        return accepted

    return leaves_enough


def test_digits_and_photographs_of_the_two_splits_are_different():
    train, labels = digit_scenes._digits("train")
    test, test_labels = digit_scenes._digits("validation")
    assert np.bincount(labels).tolist() == [400] * 10
    assert np.bincount(test_labels).tolist() == [100] * 10
    assert not {digit.tobytes() for digit in train if digit.size > 100} & {digit.tobytes() for digit in test}
    for left, right in zip(digit_scenes._photographs("train"), digit_scenes._photographs("validation"), strict=True):
        assert left.shape == right.shape == (427, 320, 3)
        assert (left != right).any()


def test_digits_stand_out_from_what_they_cover(scenes):
    for scene in scenes["train"][:30]:
        for mask in scene.masks:
            colour = np.median(scene.image[mask], 0)
            assert np.ptp(colour) >= 100


# A change of these makes another set; its figures must be measured again.
@pytest.mark.parametrize(
    ("split", "index", "expected"),
    [("train", 0, "c689179a35f0591a"), ("train", 999, "6db38d750bc0dc26"), ("validation", 7, "b61f943a5244e52e")],
)
def test_the_set_is_the_same_everywhere(split, index, expected):
    scene = make_scene(split, index)
    crowd = [] if scene.crowd is None else [scene.crowd[0], scene.crowd[1].tobytes()]
    content = repr([scene.image.shape, scene.labels, [mask.tobytes() for mask in scene.masks], crowd])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == expected


def test_two_calls_make_the_same_scene():
    one, other = make_scene("train", 999), make_scene("train", 999)
    np.testing.assert_array_equal(one.image, other.image)
    assert one.crowd is not None
    assert make_scene("train", 998).crowd is None
