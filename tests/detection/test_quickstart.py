"""The detector's quickstart: its configuration, and the same road in small."""

import dataclasses
import json
import pathlib

import jax
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed; extra detection")

from gw_jax.detection.data import digit_scenes
from gw_jax.detection.data.resize import target_sizes
from gw_jax.detection.inputs import choose_canvas
from gw_jax.train import run
from gw_jax.train.command_line import load_config
from gw_jax.train.config import validate

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "detection_quickstart.py"


def test_the_configuration_fits_the_set():
    config = load_config(str(CONFIG))
    validate(config)
    assert config.data.name == "digit_scenes"
    assert config.num_classes == len(digit_scenes.NAMES) + 1
    assert config.max_objects == digit_scenes.MOST_DIGITS
    sizes = [(digit_scenes.SHORT_SIDE, digit_scenes.LONG_SIDE), (digit_scenes.LONG_SIDE, digit_scenes.SHORT_SIDE)]
    for height, width in target_sizes(sizes, config.data.min_side, config.data.max_side).tolist():
        choose_canvas(height, width, config.canvas_sizes())
    # A mirrored digit would have the label of what it is not.
    assert not config.data.flip
    # A backbone without weights of another training learns as a whole.
    assert (config.init_from, config.model.frozen_stages, config.optimizer.frozen) == (None, 0, ())


@pytest.mark.slow  # Compiles training and evaluation.
def test_the_set_is_made_and_the_run_leaves_its_pictures(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(digit_scenes, "SPLITS", {"train": 9, "validation": 3})
    config = load_config(str(CONFIG))
    config = dataclasses.replace(config, num_steps=2, batch_size=4, eval_batch_size=2)
    config.data.data_dir = str(tmp_path / "data")
    config.model = dataclasses.replace(config.model, width=8, fpn_features=8, head_features=16)
    config.model.norm_options.num_groups = 4
    result = run(config, tmp_path / "run", devices=jax.devices()[:1])
    assert result.metrics["eval/count"] == 3
    assert {f"ap/{name}" for name in digit_scenes.NAMES} & set(result.metrics)
    assert (tmp_path / "run" / "curves.png").exists()
    assert (tmp_path / "run" / "detections.png").exists()
    assert isinstance(json.loads((tmp_path / "run" / "detections-2.json").read_text()), list)


@pytest.mark.slow  # Draws all scenes.
def test_limits_are_those_of_all_scenes(tmp_path):
    config = load_config(str(CONFIG))
    for json_path, _ in digit_scenes.write_digit_scenes(tmp_path).values():
        objects = json.loads(json_path.read_text())["annotations"]
        edges = [sum(map(len, thing["segmentation"])) // 2 for thing in objects if not thing["iscrowd"]]
        assert max(edges) <= config.max_edges < max(edges) + 100
