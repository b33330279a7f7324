"""A detector through the trainer: steps, resume, warm starts, export, and what is refused."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.detection import Sampling, create_detector, load_detector, ops, pad_targets, save_detector
from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.recipes import FROZEN, reference_optimizer, reference_schedule
from gw_jax.detection.task import DetectionTask
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models.config import NormConfig
from gw_jax.train import LogConfig
from gw_jax.train import run as run_on
from gw_jax.train.config import validate
from gw_jax.train.experiment import build_experiment
from gw_jax.train.metrics import read_metrics
from gw_jax.tree import variables
from tests.detection.in_memory import InMemoryData
from tests.helpers.runs import At, KilledError, results

SMALL = {
    "backbone": "resnet18",
    "width": 8,
    "fpn_features": 16,
    "head_features": 32,
}
TRIANGLE = [20.0, 10.0, 80.0, 10.0, 50.0, 60.0]


@functools.cache
def batches(count=2, images=2):
    """Noise with one bright object in each image but the last."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        pictures = rng.integers(0, 80, (images, 64, 96, 3), dtype=np.uint8)
        pictures[:-1, 10:60, 20:80] += 120
        objects = [[[20.0, 10, 79, 59]]] * (images - 1) + [[]]
        polygons = [[[TRIANGLE]]] * (images - 1) + [[]]
        labels = [[1]] * (images - 1) + [[]]
        targets = pad_targets(objects, labels, polygons, num_classes=3, max_objects=3)
        made.append({"image": pictures, "size": np.full((images, 2), (64, 96), np.int32), **targets})
    return made


@dataclasses.dataclass(slots=True, kw_only=True)
class Config(DetectionConfig):
    def make_task(self):
        return DetectionTask(self, InMemoryData(batches(images=self.batch_size)))


def make_config(**fields):
    config = Config(
        num_classes=3,
        batch_size=2,
        num_steps=4,
        eval_every_steps=2,
        canvases=("64x96",),
        max_objects=3,
        sampling=Sampling(rpn_batch=32, box_batch=16, pre_nms_top_n=40, post_nms_top_n=40, proposals=24),
        model=DetectorConfig(**SMALL, norm_options=NormConfig(num_groups=8), mask_head=True),
        optimizer=reference_optimizer(0.01),
        schedule=reference_schedule(1000, 2000),
        log=LogConfig(every_steps=1, progress_bar=False, plot=False, tensorboard=False),
    )
    return dataclasses.replace(config, **fields)


def run(config, workdir, **options):
    """On one of the devices."""
    return run_on(config, workdir, devices=jax.devices()[:1], **options)


def arrays_of(directory):
    return {path: np.asarray(leaf) for path, leaf in variables(load_detector(directory)).items()}


@pytest.mark.slow
@pytest.mark.long  # Runs on prepared sets are killed and exported in test_canvas_runs.py and test_evaluated_runs.py.
def test_a_run_is_killed_resumes_and_exports(tmp_path, quick):
    config = make_config()
    run(config, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(make_config(), tmp_path / "killed", hooks=At("after_step", 3, _kill))
    run(make_config(), tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    losses = [line["train/loss_mask"] for line in read_metrics(tmp_path / "whole") if "train/loss_mask" in line]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    names = {"train/loss", *(f"train/{name}" for name in ("loss_classifier", "loss_objectness", "loss_rpn_box_reg"))}
    assert names <= set(read_metrics(tmp_path / "whole")[0])
    run(make_config(mode="export"), tmp_path / "whole")
    trained = arrays_of(next((tmp_path / "whole").glob("exported-*")))
    initial = {path: np.asarray(leaf) for path, leaf in variables(config.make_task().make_model(nnx.Rngs(0))).items()}
    changed = {path for path, array in trained.items() if not np.array_equal(array, initial[path])}
    frozen = {path for path in trained if any(re.search(pattern, path.replace(".", "/")) for pattern in FROZEN)}
    assert frozen
    assert not changed & frozen
    assert {path.split(".")[0] for path in changed} == {"backbone", "fpn", "rpn_head", "box_head", "mask_head"}


def _kill(trainer):
    raise KilledError


def losses_of(config, steps=2, devices=1):
    experiment = build_experiment(config, jax.devices()[:devices])
    loop, state, history = experiment.task.train_batches(1, 0, 1), experiment.state, []
    for _ in range(steps):
        state, metrics = experiment.train_step(state, experiment.shard_batch(next(loop)))
        history.append({name: float(total) / float(count) for name, (total, count) in metrics.items()})
    return history


@pytest.mark.slow
@pytest.mark.long  # Two hosts evaluate alike in test_evaluated_runs.py.
@pytest.mark.parametrize("norm", ["gw", "bn"])
def test_four_devices_train_as_one(quick, norm):
    """Means are over all images, so that devices with fewer positives count for less; so are the statistics of "bn"."""
    config = make_config(batch_size=4)
    if norm == "bn":
        config.model = DetectorConfig(**SMALL, norm="bn", frozen_stages=0, mask_head=True)
        config.optimizer = dataclasses.replace(config.optimizer, frozen=())
    one, four = losses_of(config), losses_of(config, devices=4)
    for a, b in zip(one, four, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.long  # test_quickstart.py trains one, too.
def test_an_overfitted_detector_finds_its_object(tmp_path, quick):
    """The whole way from random weights to a detection of the right place, class and shape."""
    config = make_config(num_steps=150, eval_every_steps=150, log=LogConfig(every_steps=50, progress_bar=False, plot=False))
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=0.02)
    config.schedule = dataclasses.replace(config.schedule, warmup_steps=50)
    run(config, tmp_path / "run")
    run(dataclasses.replace(config, mode="export"), tmp_path / "run")
    detector = load_detector(tmp_path / "run" / "exported-150")
    task = config.make_task()
    outputs = jax.jit(lambda batch: task.predict(detector, batch))(batches()[0])["detections"]
    assert outputs.labels[0, 0] == 1
    assert outputs.scores[0, 0] > 0.9
    # How near it comes in so few steps depends on the last bit of every sum before.
    overlap = ops.iou(outputs.boxes[0, :1].astype(np.float32), np.array([[20, 10, 79, 59]], np.float32))
    assert overlap[0, 0] > 0.6
    # The triangle: its top corners are inside, the bottom ones are not.
    mask = outputs.masks[0, 0]
    assert min(mask[2, 5], mask[2, 22], mask[20, 14]) > 0.5 > max(mask[25, 2], mask[25, 25])


def save_classifier(directory, **arguments):
    options = {"norm_options": {"num_groups": 8}, "width": 8, "num_classes": 5, **arguments}
    gw_jax.save_pretrained(directory, gw_jax.create_model("resnet18", **options, rngs=nnx.Rngs(7)))


@pytest.mark.slow
def test_a_run_starts_from_a_classifier(tmp_path):
    save_classifier(tmp_path / "classifier")
    config = make_config(init_from=str(tmp_path / "classifier"))
    weights = config.make_task().read_weights(tmp_path / "classifier")
    there = variables(gw_jax.load_pretrained(tmp_path / "classifier"))
    assert all(path.startswith("backbone.") for path in weights.arrays)
    for path in ("stem_conv.kernel", "stage4.1.norm2.mean"):
        np.testing.assert_array_equal(weights.arrays[f"backbone.{path}"], there[path])
    backbone = variables(config.make_task().make_model(nnx.Rngs(0)).backbone)
    assert {f"backbone.{path}" for path in backbone} == set(weights.arrays)
    with pytest.raises(ConfigError, match="would evaluate random heads"):
        make_config(mode="evaluate").make_task().read_weights(tmp_path / "classifier")
    with pytest.raises(CheckpointError, match=r"nothing holds no \w+: there is no config.json"):
        make_config(mode="evaluate").make_task().read_weights(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=re.escape("set config.pixels='rgb'")):
        make_config(pixels="bgr").make_task().read_weights(tmp_path / "classifier")


@pytest.mark.slow
def test_a_run_starts_from_a_detector(tmp_path):
    arguments = {**SMALL, "mask_head": True, "frozen_bn_epsilon": 1e-5}
    detector = create_detector(**arguments, norm_options={"num_groups": 8}, num_classes=3, rngs=nnx.Rngs(3))
    save_detector(tmp_path / "detector", detector)
    model = DetectorConfig(**arguments, norm_options=NormConfig(num_groups=8))
    arrays = make_config(model=model).make_task().read_weights(tmp_path / "detector").arrays
    for path, leaf in variables(detector).items():
        np.testing.assert_array_equal(arrays[path], leaf)
    with pytest.raises(ConfigError, match="num_classes is 3 there and 4 here"):
        make_config(num_classes=4, model=model).make_task().read_weights(tmp_path / "detector")
    with pytest.raises(ConfigError, match=r"frozen_bn_epsilon is 1e-05 there and 0\.0 here"):
        make_config().make_task().read_weights(tmp_path / "detector")
    other = make_config(model=dataclasses.replace(model, norm_options=NormConfig(num_groups=4)))
    with pytest.raises(ConfigError, match=r"norm_options is .* there and .* here"):
        other.make_task().read_weights(tmp_path / "detector")
    # What a description leaves out has create_detector's default there, not the run's value.
    path = tmp_path / "detector" / "config.json"
    description = json.loads(path.read_text())
    del description["detector"]["conv_relu"]
    path.write_text(json.dumps(description))
    each = make_config()
    each.model.conv_relu = "each"
    with pytest.raises(ConfigError, match="conv_relu is 'last' there and 'each' here"):
        each.make_task().read_weights(tmp_path / "detector")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"canvases": ("800x1333",)}, "config.canvases has '800x1333'"),
        ({"canvases": ("800",)}, "config.canvases has '800'"),
        ({"canvases": ()}, "config.canvases is empty"),
        ({"sampling": Sampling(pool_images=3)}, "config.sampling.pool_images=3 does not divide the 2 images"),
        ({"sampling": Sampling(rpn_batch=0)}, "config.sampling.rpn_batch=0 is out of range"),
        ({"model": DetectorConfig(norm="bn")}, "config.model.norm='bn' with config.model.frozen_stages=1"),
        ({"model": DetectorConfig(norm="bn", frozen_stages=0), "remat": True}, "config.remat=True recomputes the backbone"),
        ({"model": DetectorConfig(box_head_norm="gw")}, "config.model.box_head_norm='gw' has no effect"),
        ({"model": DetectorConfig(mask_head_norm="gw")}, "config.model.mask_head_norm='gw' has no effect"),
        ({"model": DetectorConfig(norm="in")}, "config.model.norm='in' is not known"),
        ({"pixels": "RGB"}, "config.pixels='RGB' is not known"),
        ({"num_classes": 1}, "config.num_classes=1 is out of range"),
    ],
)
def test_mistakes_in_a_configuration_are_named(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        validate(make_config(**fields))
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"config.batch_size=2 cannot be split evenly over 4 devices; .* of 4"):
        make_config().make_task().check(4, training=True)
    make_config().make_task().check(4, training=False)
    with pytest.raises(ConfigError, match=r"config.eval_batch_size=6 cannot be split evenly over 4 devices"):
        make_config(eval_batch_size=6).make_task().check(4, training=False)
    task = make_config().make_task()
    task.steps_per_epoch = 0
    with pytest.raises(ConfigError, match=r"config.batch_size=2 is more than the data have"):
        task.check(1, training=True)
