"""Annotations in COCO's format: what is read, what is dropped and what is refused."""

import json
import pathlib

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from gw_jax.detection.data.coco import read_coco
from gw_jax.detection.data.packed import unpack
from gw_jax.errors import DataError
from tests.helpers.coco import write_own


def read_own(tmp_path, change=None, **options):
    return read_coco([write_own(tmp_path, change)], "--train", **{"training": True, **options})


def test_boxes_labels_and_polygons(tmp_path):
    """Image ids and category ids in ascending order; x2 = x + max(w - 1, 0), as the reference reads boxes."""
    split = read_own(tmp_path)
    assert [category.name for category in split.categories] == ["dog", "cat"]
    assert [(image.image_id, image.height, image.width) for image in split.images] == [(10, 36, 24), (20, 30, 40)]
    dog, cat = (unpack(image.objects) for image in split.images)
    np.testing.assert_array_equal(dog.boxes, [[2.5, 3, 11.5, 12.5]])
    assert (dog.labels.tolist(), cat.labels.tolist(), cat.boxes.tolist()) == ([1], [2], [[2, 3, 11, 12]])
    assert cat.polygons[0][0].tolist() == [2, 3, 12, 3, 12, 13, 2, 13]
    assert (split.images[0].num_objects, split.images[0].num_parts, split.images[0].num_edges) == (1, 1, 4)


def with_annotations(*annotations):
    def change(content):
        content["annotations"] = [
            {"id": number, "image_id": 20, "category_id": 7, "iscrowd": 0, **annotation}
            for number, annotation in enumerate(annotations, start=1)
        ]

    return change


TRIANGLE = [1, 1, 9, 1, 1, 9]


def test_boxes_are_clipped_and_those_without_area_dropped(tmp_path):
    boxes = [[-5, -5, 20, 20], [30, 20, 50, 50], [5, 5, 1, 9], [5, 5, 9, 0.5], [5, 5, -3, 9], [40, 5, 5, 5], [-9, 5, 9, 9]]
    split = read_own(tmp_path, with_annotations(*({"bbox": box, "segmentation": [TRIANGLE]} for box in boxes)))
    (image,) = split.images
    np.testing.assert_array_equal(unpack(image.objects).boxes, [[0, 0, 14, 14], [30, 20, 39, 29]])
    assert split.dropped == {"objects with a side of at most 1 pixel": 3, "objects outside of their image": 2}
    assert split.dropped_images == {"images without annotations": 1}


def test_short_polygons_are_dropped_and_objects_of_which_nothing_is_left(tmp_path):
    box = {"bbox": [1, 1, 8, 8]}
    change = with_annotations(
        {**box, "segmentation": [TRIANGLE, [1, 1, 5, 5], []]},
        {**box, "segmentation": [[1, 1, 5, 5]]},
        {**box, "segmentation": {"size": [30, 40], "counts": [1200]}},
        {**box, "segmentation": []},
        box,
    )
    split = read_own(tmp_path, change)
    (image,) = split.images
    assert [len(parts) for parts in unpack(image.objects).polygons] == [1, 0, 0]
    assert split.objects_without_mask == 2
    assert split.dropped == {
        "polygons of fewer than 3 points": 3,
        "objects of which no polygon was left": 1,
        "objects with an empty mask": 1,
    }
    evaluated = read_own(tmp_path / "eval", change, training=False).annotations["annotations"]
    assert [annotation["id"] for annotation in evaluated] == [1, 4, 5]
    assert evaluated[0]["segmentation"] == [TRIANGLE]


@pytest.mark.parametrize("compressed", [False, True])
def test_rle_becomes_polygons_and_crowds_are_no_objects(tmp_path, compressed):
    mask = np.zeros((30, 40), bool)
    mask[5:25, 8:30] = True
    mask[10:14, 12:20] = False
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    flat = np.flatnonzero(np.diff(mask.T.ravel().astype(int), prepend=0, append=0))
    rle = {"size": [30, 40], "counts": np.diff(flat, prepend=0, append=1200).tolist()}
    if compressed:
        rle["counts"] = encoded["counts"].decode()
    box = {"bbox": [8, 5, 22, 20], "segmentation": rle}
    change = with_annotations(box, {**box, "iscrowd": 1}, {**box, "iscrowd": 1, "segmentation": [TRIANGLE]})
    split = read_own(tmp_path, change)
    (image,) = split.images
    objects = unpack(image.objects)
    assert (len(objects.labels), split.num_crowds) == (1, 2)
    parts = coco_mask.frPyObjects([part.tolist() for part in objects.polygons[0]], 30, 40)
    np.testing.assert_array_equal(coco_mask.decode(coco_mask.merge(parts)).astype(bool), mask)
    evaluated = read_own(tmp_path / "eval", change, training=False).annotations["annotations"]
    assert [annotation["iscrowd"] for annotation in evaluated] == [0, 1, 1]
    assert [annotation["area"] for annotation in evaluated] == [mask.sum(), mask.sum(), 32]
    assert evaluated[1]["segmentation"] == rle


def test_images_without_objects(tmp_path):
    """They are dropped from training, kept on request, and always evaluated on."""

    def change(content):
        content["images"] += [{**content["images"][0], "id": key} for key in (1, 2, 3)]
        first = content["annotations"][0]
        content["annotations"] += [
            {**first, "id": 11, "image_id": 1, "iscrowd": 1},
            {**first, "id": 12, "image_id": 2, "bbox": [0, 0, 1, 1]},
        ]

    split = read_own(tmp_path / "1", change)
    assert [image.image_id for image in split.images] == [10, 20]
    assert split.dropped_images == {
        "images of which all annotations are crowds": 1,
        "images of which all objects were dropped": 1,
        "images without annotations": 1,
    }
    for options in ({"keep_empty": True}, {"training": False}):
        split = read_own(tmp_path / str(options), change, **options)
        assert [(image.image_id, image.num_objects) for image in split.images] == [(1, 0), (2, 0), (3, 0), (10, 1), (20, 1)]
        assert not split.dropped_images


def test_what_exports_leave_out_is_added_for_the_evaluation(tmp_path):
    """``area`` and ``iscrowd``; ids of 0, which COCOeval takes for objects that were not found."""

    def change(content):
        for number, annotation in enumerate(content["annotations"]):
            annotation.pop("area", None)
            del annotation["iscrowd"]
            annotation["id"] = number
        del content["annotations"][1]["segmentation"]

    annotations = read_own(tmp_path, change, training=False).annotations["annotations"]
    assert [(a["id"], a["iscrowd"], a["area"]) for a in annotations] == [(1, 0, 100), (2, 0, 105)]

    def without_ids(content):
        del content["annotations"][0]["id"]
        content["annotations"][1]["id"] = "9c41"

    annotations = read_own(tmp_path / "2", without_ids, training=False).annotations["annotations"]
    assert [annotation["id"] for annotation in annotations] == [1, 2]


def changed(*path, to):
    def change(content):
        owner = content
        for key in path[:-1]:
            owner = owner[key]
        if to is ...:
            del owner[path[-1]]
        else:
            owner[path[-1]] = to

    return change


ANNOTATION, IMAGE, CATEGORY = ("annotations", 0), ("images", 0), ("categories", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: json.dumps(content)[:-40], r"is no JSON file, or a damaged one \(Expecting|Unterminated"),
        (lambda content: "", r"is no JSON file, or a damaged one \(Expecting value"),
        (lambda content: "[" * 200_000, "is no JSON file, or a damaged one"),
        (lambda content: [{"image_id": 1, "score": 0.5}], "not in COCO's format: it holds a list.*Results of a detector"),
        (lambda content: {"shapes": [], "imagePath": ""}, "has no list 'images', only 'shapes', 'imagePath'"),
        (changed("annotations", to=...), "has no list 'annotations', only 'images', 'categories'"),
        (changed("categories", to={"7": "cat"}), "has no list 'categories'"),
        (changed("images", to=[]), "has no images"),
        (changed("categories", to=[]), "has no categories"),
        (changed(*CATEGORY, to="cat"), "has the category 'cat'; a category has an integer 'id'"),
        (changed(*CATEGORY, "id", to="7"), "has the category .*'id': '7'"),
        (changed(*CATEGORY, "name", to="a\nb"), "has the category .*which is printable"),
        (changed(*CATEGORY, "id", to=3), "has two categories with the id 3"),
        (changed(*CATEGORY, "name", to="dog"), "has two categories with the name 'dog'"),
        (changed(*IMAGE, to=5), "1 images have no integer 'id', the first is number 0: 5"),
        (changed(*IMAGE, "id", to="a"), "1 images have no integer 'id'"),
        (changed(*IMAGE, "id", to=10), "1 images have the id of another one, the first is image 10"),
        (changed(*IMAGE, "file_name", to=...), "1 images have no 'file_name', the first is image 20"),
        (changed(*IMAGE, "file_name", to="../a.png"), r"have a 'file_name' outside of the folder .*image 20: '../a.png'"),
        (changed(*IMAGE, "file_name", to="/etc/passwd"), "have a 'file_name' outside of the folder"),
        (changed(*IMAGE, "height", to=0), "have no 'height' and 'width' from 1 to 65,535, the first is image 20: 0 x 40"),
        (changed(*IMAGE, "width", to=40.0), "have no 'height' and 'width'"),
        (changed(*ANNOTATION, to=[]), "1 annotations are no objects, the first is number 0"),
        (changed(*ANNOTATION, "id", to=2), "1 annotations have the id of another one, the first is annotation 2"),
        (changed(*ANNOTATION, "id", to=[1]), "have an 'id' that is no integer"),
        (
            changed(*ANNOTATION, "image_id", to=77),
            "belong to an unknown image, the first is annotation 1 with the image_id 77",
        ),
        (changed(*ANNOTATION, "image_id", to="20"), "belong to an unknown image"),
        (changed(*ANNOTATION, "image_id", to=[20]), "belong to an unknown image"),
        (
            changed(*ANNOTATION, "category_id", to=1),
            "have an unknown category, the first is annotation 1 with the category_id 1",
        ),
        (changed(*ANNOTATION, "category_id", to=...), "have an unknown category"),
        (changed(*ANNOTATION, "bbox", to=...), "have no 'bbox' of 4 numbers.*annotation 1: None"),
        (changed(*ANNOTATION, "bbox", to=[1, 2, 3]), "have no 'bbox' of 4 numbers"),
        (changed(*ANNOTATION, "bbox", to=[1, 2, float("nan"), 4]), r"values that are no finite numbers .*\[1, 2, nan, 4\]"),
        (changed(*ANNOTATION, "bbox", to=[1, 2, float("inf"), 4]), "values that are no finite numbers"),
        (changed(*ANNOTATION, "bbox", to=[1, 2, "3", 4]), "values that are no finite numbers"),
        (changed(*ANNOTATION, "bbox", to=[1, 2, 1e300, 4]), "values that are no finite numbers up to 1,000,000"),
        (changed(*ANNOTATION, "iscrowd", to=2), "have an 'iscrowd' that is neither 0 nor 1"),
        (changed(*ANNOTATION, "area", to=-1), "have an 'area' that is no finite number from 0 on"),
        (changed(*ANNOTATION, "area", to=float("nan")), "have an 'area'"),
        (changed(*ANNOTATION, "segmentation", to=TRIANGLE), "have a 'segmentation' that is neither a list of polygons"),
        (changed(*ANNOTATION, "segmentation", to="abc"), "have a 'segmentation' that is neither"),
        (changed(*ANNOTATION, "segmentation", to=[[1, 2, 3, 4, 5, 6, 7]]), "an odd number of coordinates.*7 numbers"),
        (
            changed(*ANNOTATION, "segmentation", to=[[1, 2, 3, 4, 5, float("nan")]]),
            "have polygons with values that are no finite",
        ),
        (changed(*ANNOTATION, "segmentation", to=[[1, 2, 3, 4, 5, None]]), "have polygons with values that are no finite"),
        (
            changed(*ANNOTATION, "segmentation", to=[[1, 2, 3, 4, 5, 1e9]]),
            "have polygons with values that are no finite numbers up",
        ),
        (
            changed(*ANNOTATION, "segmentation", to={"size": [40, 30], "counts": [1200]}),
            r"annotation 1: an RLE of size \[40, 30\]",
        ),
        (
            changed(*ANNOTATION, "segmentation", to={"size": [30, 40], "counts": [1199]}),
            "a damaged RLE, whose counts do not sum",
        ),
        (changed("annotations", to=[]), "has no image to train on: 2 images without annotations. .*--keep_empty"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read_own(tmp_path, change)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_all_entries_of_a_problem_are_counted(tmp_path):
    def change(content):
        first = content["annotations"][0]
        content["annotations"] += [{**first, "id": key, "image_id": 0} for key in range(100, 350)]
        content["annotations"].append({**first, "id": 99, "category_id": 0})

    with pytest.raises(
        DataError, match=r"250 annotations belong to an unknown image, the first is annotation 100 .*1 other"
    ):
        read_own(tmp_path, change)


def test_paths_that_cannot_be_read(tmp_path):
    path, folder = write_own(tmp_path)
    for json_path, images, message in (
        (tmp_path / "none.json", folder, "--train .*none.json cannot be read: No such file"),
        (folder, folder, "cannot be read: Is a directory"),
        (folder / "a.png", folder, "is no JSON file, or a damaged one"),
        (path, tmp_path / "none", "none: the folder of images does not exist"),
        (path, path, "the folder of images is a file"),
    ):
        with pytest.raises(DataError, match=message):
            read_coco([(json_path, images)], "--train", training=True)


def test_several_files_make_one_split(tmp_path):
    """As COCO's training images of 2014 and what its validation images keep beside the 5,000 of minival."""
    first = write_own(tmp_path / "1")

    def renumbered(content):
        for image in content["images"]:
            image["id"] += 5
        for annotation in content["annotations"]:
            annotation["image_id"] += 5

    split = read_coco([first, write_own(tmp_path / "2", renumbered)], "--train", training=True)
    assert [image.image_id for image in split.images] == [10, 15, 20, 25]
    assert {image.path.parent.parent.name for image in split.images} == {"1", "2"}
    assert split.objects_of == {1: 2, 2: 2}
    with pytest.raises(DataError, match=r"2 ids of images in .*/3/train\.json are in another file .*the first is 10"):
        read_coco([first, write_own(tmp_path / "3")], "--train", training=True)
    other = write_own(tmp_path / "4", changed(*CATEGORY, "name", to="lion"))
    with pytest.raises(
        DataError, match=r"different categories: only .*/1/train\.json has the category 'cat' with the id 7"
    ):
        read_coco([first, other], "--train", training=True)


def test_an_evaluation_needs_an_object(tmp_path):
    def crowds(content):
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1

    with pytest.raises(DataError, match="has no object to find, only images and crowds"):
        read_own(tmp_path, crowds, training=False)


def test_a_byte_order_mark_is_no_damage(tmp_path):
    path, folder = write_own(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco([(pathlib.Path(path), folder)], "--train", training=True).images) == 2
