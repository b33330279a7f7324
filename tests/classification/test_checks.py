"""Invalid combinations are named before anything is written; uses of random numbers have independent keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.augment.config import AugmentConfig
from gw_jax.classification import inputs
from gw_jax.classification.task import ClassificationTask
from gw_jax.data import DatasetSpec
from gw_jax.data.config import DataConfig
from gw_jax.errors import ConfigError
from gw_jax.train import run
from gw_jax.train.state import activation_dtype
from tests.helpers import shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": 12}, r"data.batch_size=12 cannot be split evenly over 8 devices.* such as 8 or 16"),
        ({"data.eval_batch_size": 25}, r"data.eval_batch_size=25 cannot be split evenly over 8 devices"),
        ({"data.batch_size": 168}, r"data.batch_size=168 exceeds the 160 training examples"),
        (
            {"model.norm_options.num_groups": 3},
            r"network of config.model cannot be made: 4 channels cannot be cut into num_gr",
        ),
        ({"model.batch_norm_group_size": 5}, r"model.batch_norm_group_size=5 does not divide config.data.batch_size=16"),
        ({"model.norm": "bn", "model.norm_options.group_size": 5}, r"model.norm_options.group_size=5 does not divide"),
        ({"data.shift": 16}, r"data.shift=16 moves images of 16 x 16 pixels out of sight"),
        ({"init_new_head": True}, r"init_new_head=True keeps the last layer random when .* config.init_from is not set"),
        ({"optimizer.learning_rate": float("inf")}, r"optimizer.learning_rate=inf is out of range"),
        (
            {"schedule.name": "step", "schedule.milestones": (3.0, 2.0)},
            r"schedule.milestones=\(3.0, 2.0\) must be above 0, each larger",
        ),
        ({"data.crop_scale": (0.5, float("nan"))}, r"data.crop_scale=nan must be a finite number"),
    ],
)
def test_invalid_combinations_are_named_before_anything_is_written(config, set_field, tmp_path, changes, message):
    for path, value in changes.items():
        set_field(config, path, value)
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_randaugment_of_unsupported_images_is_refused(config, tmp_path):
    config.augment.randaugment_layers = 2
    run_config = dataclasses.replace(config, num_steps=1)
    spec = dataclasses.replace(shapes.SPEC, image_shape=(16, 16, 4), mean=(0.5,) * 4, std=(0.5,) * 4)
    task = ClassificationTask(run_config, shapes.make_shapes()._replace(spec=spec))
    with pytest.raises(ConfigError, match=r"randaugment_layers=2 needs grey or RGB images"):
        task.check(8, training=True)
    ClassificationTask(run_config, shapes.make_shapes()).check(8, training=True)


def test_every_use_of_random_numbers_has_a_key_of_its_own(monkeypatch):
    """Flips and dropout once shared one: ``split(key)[1]`` equals ``fold_in(key, 1)``."""
    seen = {}

    def spy(name, result):
        def function(images, *arguments, **options):
            keys = [a for a in arguments if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key)]
            seen[name] = jax.random.key_data(keys[0]).tolist()
            return result(images, *arguments)

        return function

    for name in ("random_shift", "random_flip", "rand_augment", "random_erasing"):
        monkeypatch.setattr(inputs, name, spy(name, lambda images, *_: images))
    monkeypatch.setattr(inputs, "mix", spy("mix", lambda images, targets, *_: (images, targets)))
    batch = {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.zeros(4, np.int32)}
    spec = DatasetSpec("x", 4, (8, 8, 3), "train", "test", 4, 4, (0.5,) * 3, (0.5,) * 3)
    key = jax.random.key(0)
    _, _, dropout = inputs.training_inputs(
        batch,
        key,
        data=DataConfig(flip=True, shift=1),
        augment=AugmentConfig(mixup=1.0, random_erasing=0.5, randaugment_layers=1),
        label_smoothing=0.1,
        spec=spec,
        dtype="float32",
    )
    seen["dropout"] = jax.random.key_data(dropout).tolist()
    assert len(seen) == 6
    assert len({tuple(data) for data in seen.values()}) == 6
    # Parts of an accumulated batch have keys from 5 on, which would meet that of dropout; but then only their own are used.
    assert seen["dropout"] == jax.random.key_data(jax.random.fold_in(key, 5)).tolist()


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", "7.5", "float32"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "12.0", "bfloat16"),
        ("gpu", "gfx942", "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_device_multiplies_it(platform, capability, expected):
    device = type("Device", (), {"platform": platform, "compute_capability": capability})()
    assert activation_dtype("auto", device) == expected
    assert activation_dtype("float64", device) == "float64"
