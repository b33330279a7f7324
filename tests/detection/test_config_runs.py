"""Every recipe for COCO, with few channels, on the miniature of COCO: prepared, 3 steps, killed, resumed, evaluated."""

import jax
import pytest

from benchmarks.detection_step import make_config
from gw_jax.train import LogConfig
from gw_jax.train import run as run_on
from tests.detection.test_configs import PUBLISHED, load
from tests.helpers.detection_run import NAME, prepare_miniature
from tests.helpers.runs import At, KilledError, results

# A minute of one core for each recipe, most of it compilation.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_miniature(tmp_path_factory.mktemp("miniature"))


def shrunk(stem, data_dir):
    """The recipe with the few channels of the benchmark's small detectors; everything else is its own."""
    network, norm = stem.removeprefix("coco_").rsplit("_", 1)
    config, small = load(stem), make_config(network, norm, 2, "96x96", "float32", small=True)
    config.model, config.sampling, config.canvases, config.dtype = small.model, small.sampling, small.canvases, "float32"
    config.batch_size, config.eval_batch_size, config.max_objects, config.max_edges = 2, 7, 8, 16
    config.num_steps, config.checkpoint.every_steps = 3, 1
    config.data.name, config.data.data_dir, config.data.num_workers = NAME, data_dir, 0
    config.data.min_side, config.data.max_side = 64, 96
    config.log = LogConfig(every_steps=1, progress_bar=False, plot=False, tensorboard=False)
    return config


def kill(trainer):
    raise KilledError


@pytest.mark.long  # test_evaluated_runs.py and test_quickstart.py take the same paths.
@pytest.mark.parametrize("stem", PUBLISHED)
def test_a_recipe_trains_is_killed_resumes_and_evaluates(stem, data_dir, tmp_path, quick):
    config = shrunk(stem, data_dir)
    devices = jax.devices()[:1]
    with pytest.raises(KilledError):
        run_on(config, tmp_path / "run", hooks=At("after_step", 2, kill), devices=devices)
    metrics = run_on(config, tmp_path / "run", devices=devices).metrics
    lines = results(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    losses = {name for name in lines[0] if name.startswith("train/loss_")}
    assert len(losses) == (5 if "mask" in stem else 4)
    assert metrics["eval/count"] == 7
    assert ("eval/mask_ap" in metrics) == ("mask" in stem)
    assert lines[0]["train/learning_rate"] == pytest.approx(config.optimizer.learning_rate * (1 / 3 + 2 / 3 / 500))
