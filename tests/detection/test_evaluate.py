"""The command that evaluates stored detections."""

import json

import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed; extra detection")

from gw_jax.detection.coco_evaluator import CocoEvaluator
from gw_jax.detection.evaluate import main
from tests.detection.coco_files import random_outputs, write_set


def test_it_prints_the_metrics_of_the_run(tmp_path, capsys):
    scenes = write_set(tmp_path)
    evaluator = CocoEvaluator(scenes, tmp_path, 5)
    for outputs in random_outputs():
        evaluator.add(outputs)
    expected = evaluator.result()
    detections = str(tmp_path / "detections-5.json")
    assert main([scenes.annotations, detections]) == 0
    assert json.loads(capsys.readouterr().out) == {name: value for name, value in expected.items() if name != "eval/count"}

    assert main([detections, scenes.annotations]) == 1
    assert "detections-5.json cannot be read as annotations in COCO's format" in capsys.readouterr().err
    assert main([scenes.annotations, str(tmp_path / "gone.json")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "gone.json cannot be read as results in COCO's format" in error
    assert error.count("\n") == 1
