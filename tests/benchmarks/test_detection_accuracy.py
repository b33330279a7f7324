"""Average precision by norm and seed: the set to overfit, the runs that are started, what is made of their results."""

import json
import sys

import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed; extra detection")

from benchmarks import detection_accuracy
from gw_jax.detection.data.scenes import open_scenes


@pytest.mark.slow
@pytest.mark.long
def test_eight_scenes_are_trained_on_and_evaluated(tmp_path):
    detection_accuracy.prepare_eight_scenes(str(tmp_path))
    scenes = open_scenes("eight_scenes", str(tmp_path))
    assert len(scenes.train) == len(scenes.evaluation) == 8
    assert list(scenes.train.image_ids) == list(scenes.evaluation.image_ids)
    assert all(len(scene.boxes) for scene in scenes.train)
    assert len(scenes.categories) == 10


def test_every_norm_and_seed_is_run_and_summarised(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command, **_):
        """Stands for train.py: two evaluations, of which the last one counts."""
        commands.append(command)
        options = dict(part.removeprefix("--").partition("=")[::2] for part in command[2:])
        box_ap = 0.4 + 0.01 * int(options["config.seed"]) + 0.1 * (options["config.model.norm"] == "gw")
        workdir = tmp_path / f"{options['config.model.norm']}_{options['config.seed']}"
        assert options["workdir"] == str(workdir)
        workdir.mkdir()
        lines = [{"eval/box_ap": 0.1}, {"train/loss": 1.0}, {"eval/box_ap": box_ap}]
        (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    monkeypatch.setattr(detection_accuracy.subprocess, "run", run)
    arguments = ["--json", "--norms", "gw", "gn", "--seeds", "1", "3", "--config.num_steps=9"]
    monkeypatch.setattr(sys, "argv", ["detection_accuracy", str(tmp_path), *arguments])
    detection_accuracy.main()
    found = json.loads(capsys.readouterr().out)
    assert found["norms"]["gw"]["eval/box_ap"] == {"mean": 0.52, "spread": 0.02}
    assert found["norms"]["gn"]["runs"]["3"]["eval/box_ap"] == pytest.approx(0.43)
    assert len(commands) == 4
    assert all("--config.num_steps=9" in command for command in commands)
