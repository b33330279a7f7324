"""The command that prepares sets from annotations in COCO's format."""

import collections
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gw_jax.data.decoding import open_image
from gw_jax.data.prepare.names import check_new_name
from gw_jax.detection.config import DetectorConfig
from gw_jax.detection.data.prepare_coco import read_facts
from gw_jax.detection.data.scenes import open_scenes
from gw_jax.detection.prepare import main, report
from gw_jax.detection.recipes import faster_rcnn_recipe
from gw_jax.train.command_line import parse
from gw_jax.train.config import validate
from tests.helpers.coco import CATEGORIES, write_miniature, write_own
from tests.helpers.coco_command import own, refused

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    directory = tmp_path_factory.mktemp("coco")
    return directory, ["mini2017", *write_miniature(directory), f"--data_dir={directory / 'data'}"]


@pytest.fixture(scope="module")
def scenes(miniature):
    directory, arguments = miniature
    main(arguments)
    return open_scenes("mini2017", str(directory / "data"))


def test_a_set_in_the_layout_of_coco(miniature, scenes):
    directory, _ = miniature
    assert [category._asdict() for category in scenes.categories] == [
        {"id": entry["id"], "name": entry["name"]} for entry in CATEGORIES
    ]
    for split, records, count in (("train2017", scenes.train, 19), ("val2017", scenes.evaluation, 6)):
        content = json.loads((directory / f"annotations/instances_{split}.json").read_text())
        objects = collections.defaultdict(list)
        for annotation in content["annotations"]:
            if not annotation["iscrowd"]:
                objects[annotation["image_id"]].append(annotation)
        ids = sorted(image["id"] for image in content["images"] if objects[image["id"]] or split == "val2017")
        assert len(records) == count
        assert records.image_ids.tolist() == ids
        for scene, key in zip(records, ids, strict=True):
            assert scene.image == (directory / split / f"{key:012}.jpg").read_bytes()
            expected = objects[key]
            assert [scenes.categories[label - 1].id for label in scene.labels] == [a["category_id"] for a in expected]
            assert [[p.tolist() for p in parts] for parts in scene.polygons] == [a["segmentation"] for a in expected]
            corners = [(x, y, x + w - 1, y + h - 1) for x, y, w, h in (a["bbox"] for a in expected)]
            np.testing.assert_allclose(scene.boxes, np.reshape(corners, (-1, 4)), rtol=1e-12)


def test_the_report(miniature, scenes, capsys):
    directory, arguments = miniature
    main(arguments)
    output = capsys.readouterr()
    assert "mini2017 is prepared already" in output.err
    first, *lines = output.out.splitlines()
    assert re.fullmatch(r"mini2017 is ready in .*/mini2017/1\.0\.0: 80 categories", first)
    assert re.match(r"train: images 19 \(without objects 0\), objects \d+, crowds 1; .*objects per image 3", lines[0])
    assert lines[1] == "  dropped: images without annotations 1"
    assert lines[2].startswith("validation: images 6 (without objects 1), objects")
    assert "Canvases that take all images at 800/1333 (config.canvases): 800x1216, 1216x800" in lines
    assert "--config.data.name=mini2017 --config.data.data_dir=" in lines[-1]
    assert "--config.num_classes=81 --config.max_objects=3 --config.max_edges=64" in lines[-1]
    assert lines[-1].endswith(" --workdir=runs/mini2017")
    # 19 images are no COCO: a short run from a detector, which the recipe accepts.
    assert lines[-2].startswith("DETECTOR: ")
    command = lines[-1].removeprefix("Train with: python ").replace("=DETECTOR", f"={directory}")
    config = parse(command.split(), ROOT / "configs/quickstart.py").config
    validate(config)
    assert (config.num_steps, config.eval_every_steps, config.batch_size) == (1000, 200, 2)
    assert (config.schedule.milestone_steps, config.schedule.warmup_steps) == ((666, 900), 100)


@pytest.mark.parametrize(("images", "steps"), [(10_000, 60_000), (99_999, 600_000), (100_000, None)])
def test_the_length_of_a_run_is_in_proportion_to_the_set(scenes, images, steps):
    known = read_facts("mini2017", os.path.dirname(os.path.dirname(os.path.dirname(scenes.annotations))))
    facts = {split: {**known[split], "images": images} for split in ("train", "validation")}
    *_, before, command = report(scenes, facts, None).splitlines()
    assert before.startswith("DETECTOR: ") == (steps is not None)
    assert re.findall(r"--config\.num_steps=(\d+)", command) == ([] if steps is None else [str(steps)])


def average_precisions(annotations, detections, kind):
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(detections))), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_stored_annotations_give_the_same_average_precision(miniature, scenes, kind):
    directory, _ = miniature
    official = directory / "annotations/instances_val2017.json"
    truth, rng = COCO(str(official)), np.random.default_rng(0)
    detections = []
    for annotation in truth.dataset["annotations"] * 2:
        x, y, w, h = np.array(annotation["bbox"]) + rng.uniform(-2, 2, 4)
        box = [x, y, w, h] if kind == "bbox" else [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if kind == "segm":
            image = truth.imgs[annotation["image_id"]]
            box = truth.annToRLE({"image_id": image["id"], "segmentation": box})
            box["counts"] = box["counts"].decode()
        score = float(rng.random())
        facts = {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "score": score}
        detections.append({**facts, ("bbox" if kind == "bbox" else "segmentation"): box})
    stats = average_precisions(official, detections, kind)
    assert 0.05 < stats[0] < 0.95
    np.testing.assert_array_equal(average_precisions(scenes.annotations, detections, kind), stats)


def test_other_files_or_options_are_refused(tmp_path, capsys):
    main(own(tmp_path))
    message = refused(*own(tmp_path), "--keep_empty")
    assert "holds a set that was prepared from other files or with other options. Give another NAME" in message
    picture = tmp_path / "eval/a.png"
    Image.new("RGB", (40, 30)).save(picture)
    assert "holds a set that was prepared from other files" in refused(*own(tmp_path))
    main(own(tmp_path, name="another"))
    assert "another is ready in" in capsys.readouterr().out


def test_what_was_dropped_is_reported(tmp_path, capsys):
    def change(content):
        content["annotations"][0]["segmentation"].append([1, 2, 3, 4])
        content["annotations"].append({**content["annotations"][0], "id": 9, "bbox": [100, 3, 10, 10]})
        content["annotations"][1]["segmentation"] = []

    main(own(tmp_path, change))
    printed = capsys.readouterr().out
    assert "  dropped: objects outside of their image 1, polygons of fewer than 3 points 2\n" in printed
    assert "  objects without a mask: 1. Use boxes only" in printed
    assert "Warning: 2 of the images to evaluate on are also trained on." in printed


def test_several_pairs_to_train_on(tmp_path):
    def other(content):
        for image in content["images"]:
            image["id"] += 1
        for annotation in content["annotations"]:
            annotation["image_id"] += 1

    more = write_own(tmp_path / "more", other)
    main([*own(tmp_path), "--train", *map(str, more)])
    assert open_scenes("own", str(tmp_path / "data")).train.image_ids.tolist() == [10, 11, 20, 21]


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def test_images_are_turned_where_the_annotations_are(tmp_path, capsys):
    """Sizes as stored win; a size that fits only the turned image turns it; any other is refused."""
    command = own(tmp_path)
    picture = Image.open(tmp_path / "train/b.jpg")
    picture.save(tmp_path / "train/b.jpg", exif=exif(6))
    picture.save(tmp_path / "train/turned.jpg", exif=exif(8))
    picture.save(tmp_path / "train/upside.jpg", exif=exif(3))
    path = tmp_path / "train.json"
    content = json.loads(path.read_text())
    for key, name, size in ((11, "turned.jpg", (36, 24)), (12, "upside.jpg", (24, 36))):
        content["images"].append({"id": key, "file_name": name, "width": size[0], "height": size[1]})
        content["annotations"].append({**content["annotations"][1], "id": key, "image_id": key})
    path.write_text(json.dumps(content))
    main(command)
    printed = capsys.readouterr().out
    assert "images turned by their EXIF orientation, as their annotations are: 1\n" in printed
    assert "images used as stored, although their EXIF orientation is another: 1." in printed
    scenes = open_scenes("own", str(tmp_path / "data")).train
    assert [(scene.image_id, scene.turn) for scene in scenes] == [(10, False), (11, True), (12, False), (20, False)]
    for scene in scenes:
        assert open_image(scene.image, 3, turn=scene.turn).size == (scene.width, scene.height)
    content["images"][-1]["width"] = 36
    path.write_text(json.dumps(content))
    message = refused(*command[:1], f"--data_dir={tmp_path / 'other'}", *command[2:])
    assert "1 of another size. The first is" in message
    assert "upside.jpg, image 12 (24 x 36 pixels, annotated are 36 x 36)" in message


def damage(tmp_path, *names, content=b"no image"):
    for name in names:
        (tmp_path / "train" / name).write_bytes(content)


def test_images_that_cannot_be_used_are_named_and_counted(tmp_path):
    command = own(tmp_path)
    files = {name: (tmp_path / "train" / name).read_bytes() for name in ("a.png", "b.jpg")}
    damage(tmp_path, "a.png")
    (tmp_path / "train/b.jpg").unlink()
    message = refused(*command)
    assert "of 2 images, files cannot be used: 1 missing, 1 unreadable. The first is" in message
    assert "train/b.jpg, image 10 (No such file or directory)" in message
    (tmp_path / "train/a.png").unlink()
    (tmp_path / "train/c.txt").write_text("")
    message = refused(*command)
    assert re.search(r"folder .*/train has none of the 2 images, the first is 'b.jpg'; it holds 'c.txt'", message)
    for name, content in files.items():
        damage(tmp_path, *files, content=content)
        damage(tmp_path, "b.jpg" if name == "a.png" else "a.png", content=files["b.jpg" if name == "a.png" else "a.png"])
        # The header is whole; the end is not there.
        damage(tmp_path, name, content=content[:-30])
        assert re.search(rf"1 unreadable. The first is .*{name}, image \d+ \(.*", refused(*command))
        damage(tmp_path, name, content=content)
    # Bytes after the end of an image are no damage.
    damage(tmp_path, "b.jpg", content=files["b.jpg"] + b"appended by a camera")
    assert not (tmp_path / "data").exists()
    main(command)


def test_nothing_is_said_to_be_downloaded(tmp_path, capfd):
    main(own(tmp_path))
    output = capfd.readouterr()
    assert output.out.startswith("own is ready in ")
    assert "ownload" not in output.out + output.err


def test_splits_must_have_the_same_categories(tmp_path):
    def lion(content):
        content["categories"][0]["name"] = "lion"

    message = refused(*own(tmp_path, None, lion))
    assert re.search(r"train.json and .*eval.json have different categories: only .* has the category 'cat' with", message)
    assert not (tmp_path / "data").exists()


def test_names_and_directories_that_cannot_be_used_are_refused(tmp_path):
    for name, message in (
        ("coco", "NAME='coco' is a known set, which would hide yours; give another name, such as my_coco"),
        ("digit_scenes", "NAME='digit_scenes' is a known set"),
        ("mnist5k", "NAME='mnist5k' is a known set"),
        ("My-Set", "NAME='My-Set' must be of small letters"),
        ("../x", "NAME='../x' must be of small letters"),
    ):
        assert message in refused(*own(tmp_path, name=name))
    command = own(tmp_path)
    assert "empty string" in refused(*command, "--data_dir=")
    assert "is a bucket. Prepare the set in a local --data_dir and copy" in refused(*command, "--data_dir=gs://bucket/data")
    (tmp_path / "file").write_text("")
    assert "Not a directory. Give another data directory" in refused(*command, f"--data_dir={tmp_path / 'file'}")


def test_a_disk_without_room_is_named_beforehand(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 100))
    message = refused(*own(tmp_path))
    assert re.search("Preparing needs about 0 GB in .*/own/1.0.0, and 0 GB are free", message)
    assert not (tmp_path / "data/own/1.0.0").exists()


def test_the_recipes_name_a_set_that_can_be_prepared():
    """``coco`` is the name of a TFDS set without masks and image sizes."""
    check_new_name(faster_rcnn_recipe(DetectorConfig()).data.name, ())


def test_images_of_unusual_sizes(tmp_path):
    """An image 1 pixel wide has room for no box; one of 48 megapixels is not decoded."""
    command = own(tmp_path)
    sizes = {"narrow.png": (1, 4000), "flat.png": (4000, 1), "large.jpg": (8000, 6000)}
    for split in ("train", "eval"):
        path = tmp_path / f"{split}.json"
        content = json.loads(path.read_text())
        for key, (name, size) in enumerate(sizes.items(), start=100):
            Image.new("L", size).save(tmp_path / split / name)
            content["images"].append({"id": key, "file_name": name, "width": size[0], "height": size[1]})
            box = [0, 0, min(size[0], 50), min(size[1], 50)]
            content["annotations"].append({"id": key, "image_id": key, "category_id": 7, "bbox": box})
        path.write_text(json.dumps(content))
    main(command)
    scenes = open_scenes("own", str(tmp_path / "data"))
    assert scenes.train.image_ids.tolist() == [10, 20, 102]
    assert scenes.evaluation.sizes.tolist()[2:] == [[4000, 1], [1, 4000], [6000, 8000]]
    assert scenes.evaluation.num_objects.tolist() == [1, 1, 0, 0, 1]
