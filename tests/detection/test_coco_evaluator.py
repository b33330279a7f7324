"""The evaluation of a set: which images count, the file of detections, and which files are kept."""

import json
import re

import jax
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed; extra detection")

from gw_jax.detection.coco_evaluator import CocoEvaluator
from gw_jax.errors import DataError, TrainingError
from tests.detection.coco_files import random_outputs, write_set


@pytest.fixture
def scenes(tmp_path):
    return write_set(tmp_path)


def stacked(outputs):
    """Several images as one batch."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *outputs)


def changed(outputs, **fields):
    return {**outputs, "batch": {**outputs["batch"], **{name: np.array(value) for name, value in fields.items()}}}


def evaluated(scenes, batches, workdir=None, step=0):
    evaluator = CocoEvaluator(scenes, workdir, step)
    for outputs in batches:
        evaluator.add(outputs)
    return evaluator.result()


def test_batches_and_their_order_do_not_change_the_result(scenes, tmp_path):
    images = random_outputs()
    metrics = evaluated(scenes, images, tmp_path / "one")
    padding = changed(images[0], index=[-1], mask=[False])
    batches = [stacked([images[2], images[0]]), stacked([images[3], padding]), stacked([padding, images[1]])]
    assert evaluated(scenes, batches, tmp_path / "two") == metrics
    file = (tmp_path / "one" / "detections-0.json").read_text()
    assert (tmp_path / "two" / "detections-0.json").read_text() == file
    assert [result["image_id"] for result in json.loads(file)[::4]] == [11, 12, 20, 31]
    assert evaluated(scenes, batches) == metrics
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("detections*"))


def test_outputs_that_are_sharded_over_devices_are_read_in_order(scenes, tmp_path):
    from gw_jax.train.mesh import batch_sharding, make_mesh

    mesh = make_mesh(jax.devices()[:4])
    batch = stacked(random_outputs())
    sharded = jax.device_put(batch, batch_sharding(mesh))
    assert not sharded["detections"].masks.is_fully_replicated
    assert evaluated(scenes, [sharded]) == evaluated(scenes, [batch])


def test_an_image_that_cannot_be_read_is_one_without_detections(scenes, tmp_path):
    images = random_outputs()
    metrics = evaluated(scenes, images)
    broken = evaluated(scenes, [changed(images[0], mask=[False]), *images[1:]], tmp_path / "run", 3)
    assert (metrics["eval/count"], broken["eval/count"]) == (4, 3)
    assert broken["eval/box_ap"] < metrics["eval/box_ap"]
    assert 11 not in {result["image_id"] for result in json.loads((tmp_path / "run" / "detections-3.json").read_text())}
    with pytest.raises(DataError, match="None of the 4 images"):
        evaluated(scenes, [changed(image, mask=[False]) for image in images])


def test_each_image_must_come_once(scenes, tmp_path):
    images = random_outputs()
    with pytest.raises(DataError, match="Image 12 of the evaluation came twice"):
        evaluated(scenes, [*images, images[1]])
    with pytest.raises(DataError, match=r"1 of the 4 images .* were not evaluated, such as image 20"):
        evaluated(scenes, [images[0], images[1], images[3]], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_has_diverged_is_no_average_precision_of_0(scenes):
    images = random_outputs()
    nothing = images[1]["detections"]._replace(present=np.zeros_like(images[1]["detections"].present))
    lost = {**images[1], "detections": nothing, "finite": np.array([False])}
    with pytest.raises(TrainingError, match="image 12 are not finite: it has diverged"):
        evaluated(scenes, [images[0], lost])
    # The features of padding do not count.
    evaluated(scenes, [*images, changed(lost, index=[-1], mask=[False])])


def test_the_files_of_the_last_and_of_the_best_evaluation_are_kept(scenes, tmp_path):
    lines, kept = [], []
    for step, seed in ((10, 6), (20, 4), (30, 0), (40, 2)):
        metrics = evaluated(scenes, random_outputs(seed), tmp_path, step)
        lines.append({"step": step, "eval/box_ap": metrics["eval/box_ap"]})
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        kept.append(sorted(int(re.findall(r"\d+", path.name)[0]) for path in tmp_path.glob("detections-*.json")))
    best = [max(lines[: count + 1], key=lambda line: line["eval/box_ap"])["step"] for count in range(4)]
    assert best == [10, 20, 20, 20]
    assert kept == [sorted({step, top}) for step, top in zip((10, 20, 30, 40), best, strict=True)]
    # An evaluation of an earlier checkpoint removes no later one.
    evaluated(scenes, random_outputs(0), tmp_path, 20)
    assert (tmp_path / "detections-40.json").exists()


def test_a_directory_that_cannot_be_written_costs_the_file_only(scenes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert evaluated(scenes, random_outputs(), tmp_path / "file")["eval/count"] == 4
    assert "warning: " in capsys.readouterr().err
