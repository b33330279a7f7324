"""A prepared set in a run: checks against the configuration, and training over two canvases."""

import dataclasses
import re

import pytest

from gw_jax.detection import scene_data
from gw_jax.detection.config import DetectionConfig, DetectorConfig
from gw_jax.detection.data.config import SceneConfig
from gw_jax.detection.scene_data import SceneData
from gw_jax.errors import ConfigError
from gw_jax.train.config import validate
from tests.detection.fake_scenes import fake_scenes, records


def make_config(**fields):
    config = DetectionConfig(
        num_classes=3,
        batch_size=2,
        eval_batch_size=4,
        canvases=("64x96", "96x64"),
        max_objects=3,
        max_edges=8,
        data=SceneConfig(name="fake", min_side=60, max_side=96),
        model=DetectorConfig(mask_head=True),
    )
    return dataclasses.replace(config, **fields)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    opened = []

    def open_scenes(name, data_dir, *, training):
        opened.append((name, data_dir, training))
        return fake_scenes(None if training else ())

    monkeypatch.setattr(scene_data, "open_scenes", open_scenes)
    return opened


def test_a_configuration_opens_its_set(fake):
    config = make_config(data=SceneConfig(name="fake", data_dir="there", min_side=60, max_side=96))
    validate(config)
    task = config.make_task()
    assert fake == [("fake", "there", True)]
    # 7 wide and 4 high images.
    assert task.steps_per_epoch == 5
    assert task.description.endswith("on fake")
    task.check(2, training=True)
    batches = task.train_batches(1, 0, 1)
    assert sorted(next(batches)) == sorted(["image", "size", "boxes", "labels", "present", "edges", "parts"])
    assert len(list(batches)) == 4
    assert sum(batch["mask"].sum() for batch in task.eval_batches(0, 1)) == 8
    assert "edges" not in next(make_config(model=DetectorConfig()).make_task().train_batches(1, 0, 1))


def test_training_images_have_one_of_several_sizes(fake):
    task = make_config(data=SceneConfig(name="fake", min_side=60, max_side=96, train_min_sides=(40, 60))).make_task()
    sizes = {tuple(size) for batch in task.train_batches(4, 0, 1) for size in batch["size"].tolist()}
    assert sizes == {(60, 90), (90, 60), (40, 60), (60, 40)}
    evaluated = [size for batch in task.eval_batches(0, 1) for size in batch["size"][batch["mask"]].tolist()]
    assert {min(size) for size in evaluated} == {60}
    with pytest.raises(ConfigError, match=r"config\.data\.train_min_sides=\(40, 0\) has a length below 1"):
        validate(make_config(data=SceneConfig(train_min_sides=(40, 0))))


def test_an_evaluation_opens_no_training_scenes(fake):
    task = make_config(mode="evaluate", max_objects=1).make_task()
    assert fake == [("fake", None, False)]
    assert task.steps_per_epoch == 0
    task.check(4, training=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_classes": 81},
            "config.num_classes=81 does not fit 'fake', which has 2 categories: set config.num_classes=3,",
        ),
        ({"max_objects": 1}, "config.max_objects=1 is too small for 'fake', which has up to 2 objects in an image; set"),
        (
            {"max_edges": 3},
            "config.max_edges=3 is too small for 'fake', which has up to 4 edges in an object's polygons; set",
        ),
        (
            {"canvases": ("64x96",)},
            "4 of 11 images are larger than every canvas (64x96) after the resize; the first is image",
        ),
        ({"batch_size": 12}, "config.batch_size=12 fits no canvas: the one with most images, 64x96, has 7. Choose"),
    ],
)
def test_what_does_not_fit_the_set_is_refused(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        make_config(**fields).make_task()
    assert "\n" not in str(error.value)


def test_evaluation_images_must_fit_a_canvas_too():
    scenes = fake_scenes(train=records(4, 0))
    with pytest.raises(ConfigError, match=r"3 of 8 images are larger than every canvas"):
        SceneData(make_config(canvases=("64x96",)), scenes)


def test_a_mask_head_needs_masks(monkeypatch):
    scenes = fake_scenes()
    monkeypatch.setattr(scenes.train, "has_masks", False)
    with pytest.raises(ConfigError, match=r"config.model.mask_head=True needs a mask of every training object, and 'fake'"):
        SceneData(make_config(), scenes)
    SceneData(make_config(model=DetectorConfig()), scenes)


def test_images_that_are_never_used_are_reported(capsys):
    task = make_config(batch_size=5).make_task()
    assert task.steps_per_epoch == 1
    assert capsys.readouterr().err == (
        "warning: 4 of 11 training images are never used, because their canvas takes less than a batch of them (96x64 "
        "takes 4; config.batch_size=5). Choose a smaller batch, or canvases that take more of the images.\n"
    )
    make_config().make_task()
    assert capsys.readouterr().err == ""


def test_sides_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match=r"config.data.max_side=96 is less than config.data.min_side=100"):
        validate(make_config(data=SceneConfig(min_side=100, max_side=96)))
