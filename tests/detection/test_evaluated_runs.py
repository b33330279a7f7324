"""Runs on a prepared set: files of detections, pictures, exports that know their categories, and several hosts."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools", reason="pycocotools is not installed; extra detection")

from gw_jax.detection import load_detector, predict
from gw_jax.detection.coco_metrics import evaluate_file
from gw_jax.detection.data.scenes import open_scenes
from gw_jax.detection.run_models import load_run
from gw_jax.train import run
from gw_jax.train.metrics import read_metrics
from gw_jax.tree import variables
from tests.helpers.detection_run import NAME, make_config, prepare_miniature, write_confident
from tests.helpers.host import end, start
from tests.helpers.runs import KilledError, kill_at, results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The set, and a detector that finds something in it."""
    directory = tmp_path_factory.mktemp("mini")
    return prepare_miniature(directory), write_confident(directory / "confident")


def configured(prepared, **fields):
    data_dir, init_from = prepared
    config = make_config()
    config.data.data_dir, config.init_from = data_dir, init_from
    return dataclasses.replace(config, **fields)


def stored(workdir):
    return {path.name: path.read_text() for path in workdir.glob("detections-*") if path.suffix != ".png"}


def test_a_run_writes_its_detections_and_a_killed_one_the_same(prepared, tmp_path, quick, capsys):
    one = jax.devices()[:1]
    result = run(configured(prepared), tmp_path / "run", devices=one)
    files = stored(tmp_path / "run")
    assert set(files) <= {"detections-2.json", "detections-3.json"}
    assert len(json.loads(files["detections-3.json"])) > 50
    scenes = open_scenes(NAME, prepared[0], training=False)
    again = evaluate_file(tmp_path / "run" / "detections-3.json", scenes.annotations)
    assert again | {"eval/count": 7} == result.metrics
    assert read_metrics(tmp_path / "run")[-1]["eval/box_ap"] == result.metrics["eval/box_ap"]
    assert any(name.startswith("ap/") for name in result.metrics)

    said = capsys.readouterr().out
    assert "Picture: " in said
    assert "ap/" not in said
    assert "Accumulating" not in said
    picture = Image.open(tmp_path / "run" / "detections.png")
    assert picture.width > 1000
    assert 50 < np.asarray(picture.convert("L")).std() < 120

    with pytest.raises(KilledError):
        run(configured(prepared), tmp_path / "killed", devices=one, hooks=kill_at(3, "before_save"))
    run(configured(prepared), tmp_path / "killed", devices=one)
    assert stored(tmp_path / "killed") == files
    assert results(tmp_path / "killed") == results(tmp_path / "run")

    (tmp_path / "run" / "detections-3.json").unlink()
    config = configured(prepared, mode="evaluate")
    config.checkpoint.evaluate = "last"
    assert run(config, tmp_path / "run", devices=one).metrics == result.metrics
    assert stored(tmp_path / "run") == files

    run(configured(prepared, mode="export"), tmp_path / "run", devices=one)
    (exported,) = (tmp_path / "run").glob("exported-*")
    assert f"to {exported}: gw_jax.detection.load_detector('{exported}')" in capsys.readouterr().out
    source = json.loads((exported / "config.json").read_text())["source"]
    assert source["resize"] == {"min_side": 64, "max_side": 96}
    assert source["categories"][12] == {"id": 14, "name": "parking meter"}

    # A prediction needs of the data only the names of their categories.
    detector, content, step = load_run(tmp_path / "run")
    assert exported.name == f"exported-{step}"
    assert content["source"].items() <= source.items()
    expected = variables(load_detector(exported))
    for path, array in variables(detector).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    text = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(text.replace(prepared[0], str(tmp_path / "elsewhere")))
    assert predict.load_model(str(tmp_path / "run")).description.categories[12] == (14, "parking meter")


@pytest.mark.long
def test_hosts_write_one_file_together(prepared, tmp_path):
    """Two processes find what one finds: each image once, in the same order."""
    fields = {"mode": "evaluate", "data.data_dir": prepared[0], "init_from": prepared[1], "distributed.timeout_s": 60}
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    for count, name in ((2, "two"), (1, "one")):
        workdir = tmp_path / name
        workdir.mkdir()
        # Of a run that was killed when it had more processes.
        (workdir / "detections-0-process-5.jsonl").write_text("cut")
        codes, said = end(start("detection_run", workdir, [fields] * count, ["none"] * count, range(count), **quick))
        assert codes == [0] * count, said
    one, two = (json.loads((tmp_path / name / "detections-0.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) > 50
    for a, b in zip(one, two, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        np.testing.assert_allclose([*a["bbox"], a["score"]], [*b["bbox"], b["score"]], rtol=1e-3, atol=1e-3)
    assert not list((tmp_path / "two").glob("*process*"))
    metrics = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    assert metrics[0]["eval/count"] == metrics[1]["eval/count"] == 7
    assert metrics[0]["eval/box_ap"] == pytest.approx(metrics[1]["eval/box_ap"], abs=1e-3)
