"""Average precision, beside pycocotools called by hand."""

import contextlib
import io
import json
import re
import sys

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed; extra detection")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gw_jax.detection.coco_evaluator import CocoEvaluator
from gw_jax.detection.coco_metrics import coco_metrics, evaluate_file, read_annotations
from gw_jax.errors import ConfigError, DataError
from tests.detection.coco_files import ANNOTATIONS, CATEGORIES, SIZES, random_outputs, write_set
from tests.detection.test_task import make_config

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def by_hand(annotations, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture
def stored(tmp_path):
    """A set, the metrics of random detections of it, and their file."""
    scenes = write_set(tmp_path)
    evaluator = CocoEvaluator(scenes, tmp_path, 5)
    for outputs in random_outputs():
        evaluator.add(outputs)
    return scenes, evaluator.result(), tmp_path / "detections-5.json"


def test_metrics_equal_pycocotools_called_by_hand(stored, capsys):
    scenes, metrics, file = stored
    boxes = by_hand(scenes.annotations, str(file), "bbox")
    masks = [{k: v for k, v in result.items() if k != "bbox"} for result in json.loads(file.read_text())]
    masks = by_hand(scenes.annotations, masks, "segm")
    for kind, evaluation in (("box", boxes), ("mask", masks)):
        expected = {f"eval/{kind}_{name}": value for name, value in zip(NAMES, evaluation.stats, strict=False)}
        assert expected[f"eval/{kind}_ap_large"] == -1
        assert {name for name in metrics if name.startswith(f"eval/{kind}")} == set(expected) - {f"eval/{kind}_ap_large"}
        for name, value in expected.items():
            assert metrics.get(name, -1) == value
    assert 0.05 < metrics["eval/box_ap"] < 0.95
    assert metrics["eval/mask_ap50"] > 0
    # The area of a mask is not that of its box.
    assert metrics["eval/mask_ap_small"] != metrics["eval/box_ap_small"]
    for index, category in enumerate(CATEGORIES[:2]):
        assert metrics[f"ap/{category['name']}"] == boxes.eval["precision"][:, :, index, 0, -1].mean()
    assert "ap/never seen" not in metrics
    assert metrics["eval/count"] == 4
    assert evaluate_file(file, scenes.annotations) | {"eval/count": 4} == metrics
    assert capsys.readouterr().out == ""


def test_no_detections_are_an_average_precision_of_0(tmp_path):
    truth = read_annotations(write_set(tmp_path).annotations)
    metrics = coco_metrics(truth, [], SIZES, masks=True)
    assert metrics["eval/box_ap"] == metrics["eval/mask_ap"] == metrics["ap/cat"] == 0
    (tmp_path / "empty.json").write_text("[\n]\n")
    assert evaluate_file(tmp_path / "empty.json", tmp_path / "annotations.json")["eval/box_ap"] == 0


def test_perfect_detections(tmp_path):
    scenes = write_set(tmp_path)
    results = [
        {**{name: a[name] for name in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for a in ANNOTATIONS
        if not a["iscrowd"]
    ]
    # What a crowd covers is no error.
    results.append({"image_id": 31, "category_id": 3, "bbox": [21, 21, 20, 10], "score": 0.95})
    metrics = coco_metrics(read_annotations(scenes.annotations), results, SIZES, masks=False)
    assert metrics["eval/box_ap"] == pytest.approx(1)
    assert metrics["ap/dog"] == pytest.approx(1)
    assert not any(name.startswith("eval/mask") for name in metrics)


def test_masks_are_left_out_where_annotations_have_none(tmp_path):
    scenes = write_set(tmp_path, [*ANNOTATIONS[:3], {**ANNOTATIONS[3], "segmentation": []}])
    metrics = coco_metrics(read_annotations(scenes.annotations), [], SIZES, masks=True)
    assert "eval/box_ap" in metrics
    assert not any(name.startswith("eval/mask") for name in metrics)


def test_categories_of_the_same_name_keep_their_ids(tmp_path, monkeypatch):
    monkeypatch.setitem(CATEGORIES[1], "name", "cat")
    metrics = coco_metrics(read_annotations(write_set(tmp_path).annotations), [], SIZES, masks=False)
    assert {name for name in metrics if name.startswith("ap/")} == {"ap/cat (3)", "ap/cat (7)"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "belong to another set: image_id 99"),
        ({"category_id": 5}, "belong to another set: category_id 5"),
    ],
)
def test_detections_of_another_set_are_refused(stored, change, message):
    scenes, _, file = stored
    results = json.loads(file.read_text())
    file.write_text(json.dumps([{**results[0], **change}, *results[1:]]))
    with pytest.raises(DataError, match=re.escape(message)):
        evaluate_file(file, scenes.annotations)


def test_files_that_are_not_what_they_should_be_are_refused(stored):
    scenes, _, file = stored
    for text in ("[", '{"a": 1}', '[{"image_id": 11}]', "[3]"):
        file.write_text(text)
        with pytest.raises(DataError, match="cannot be read as results in COCO's format"):
            evaluate_file(file, scenes.annotations)
    for path in (file, file.with_name("nothing.json")):
        with pytest.raises(DataError, match="cannot be read as annotations in COCO's format"):
            read_annotations(path)


def test_a_run_without_pycocotools_is_refused_before_it_starts(monkeypatch):
    task = make_config().make_task()
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    task.check(1, training=True)
    monkeypatch.setattr(task.data, "scenes", "a set", raising=False)
    with pytest.raises(ConfigError, match=r"Evaluating detections needs the package 'pycocotools'.*gw_jax\[detection\]"):
        task.check(1, training=True)


def test_a_set_without_objects_has_no_average_precision(tmp_path):
    truth = read_annotations(write_set(tmp_path, [ANNOTATIONS[-1]]).annotations)
    with pytest.raises(DataError, match="have no objects beside crowds"):
        coco_metrics(truth, [], SIZES, masks=False)
    with pytest.raises(DataError, match="do not have the image 99"):
        coco_metrics(truth, [], [11, 99], masks=False)


def test_images_that_are_not_evaluated_do_not_count(tmp_path):
    """Image 31 alone: its one object is found, and nothing else is missed."""
    truth = read_annotations(write_set(tmp_path).annotations)
    result = {"image_id": 31, "category_id": 7, "bbox": [0, 0, 60, 45], "score": 0.5}
    metrics = coco_metrics(truth, [result], np.array([31]).tolist(), masks=False)
    assert metrics["eval/box_ap"] == pytest.approx(1)
    assert "ap/cat" not in metrics
