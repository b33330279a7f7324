"""The linear scaling rule: what it changes, and where it is refused."""

import re

import numpy as np
import pytest

from gw_jax.errors import ConfigError
from gw_jax.train import OptimizerConfig, ScheduleConfig, TrainConfig
from gw_jax.train.batch_scaling import scale_to_batch
from gw_jax.train.config import validate
from gw_jax.train.schedule import make_schedule


def make_config(**fields):
    schedule = ScheduleConfig(warmup_steps=39, warmup_from=0.1, milestone_steps=(299, 399))
    optimizer = OptimizerConfig(learning_rate=0.4, weight_decay=1e-3)
    return TrainConfig(**{"num_steps": 480, "schedule": schedule, "optimizer": optimizer, **fields})


@pytest.mark.parametrize("batch", [2, 4, 8, 32])
def test_the_same_examples_see_the_same_part_of_the_schedule(batch):
    config = make_config(eval_every_steps=160)
    scaled = scale_to_batch(config, 16, batch)
    assert scaled.num_steps == 480 * 16 // batch
    assert scaled.eval_every_steps == 160 * 16 // batch
    assert (config.num_steps, config.optimizer.learning_rate) == (480, 0.4)
    assert scaled.optimizer.weight_decay == 1e-3
    before = make_schedule(config.schedule, config.optimizer.learning_rate, 100, 480)
    after = make_schedule(scaled.schedule, scaled.optimizer.learning_rate, 100, scaled.num_steps)
    # Number 16 k / batch, from 1, of the scaled run has seen what number k has. The ends of the warm-up and of each part.
    for number in (40, 200, 298, 300, 398, 400, 480):
        expected = float(before(number - 1)) * batch / 16
        np.testing.assert_allclose(float(after(number * 16 // batch - 1)), expected, rtol=1e-5, err_msg=str(number))


def test_lengths_in_epochs_stay():
    config = TrainConfig(num_epochs=12, schedule=ScheduleConfig(milestones=(8, 11), warmup_epochs=0.5))
    scaled = scale_to_batch(config, 16, 8)
    assert (scaled.num_steps, scaled.eval_every_steps) == (None, None)
    assert scaled.schedule == config.schedule
    assert scaled.optimizer.learning_rate == 0.05
    assert scaled.summary == "Scaled from batches of 16 to 8: optimizer.learning_rate 0.1 to 0.05."


@pytest.mark.parametrize(
    ("fields", "batch", "message"),
    [
        ({"optimizer": OptimizerConfig(name="adamw")}, 8, "is the rule of SGD, and config.optimizer.name='adamw'"),
        ({}, 16 * 1000, "makes config.num_steps=480 less than one step, from batches of 16 to 16000"),
        (
            {"schedule": ScheduleConfig(milestone_steps=(1999, 2000)), "num_steps": 9000},
            64,
            "makes config.schedule.milestone_steps=(1999, 2000) the same step",
        ),
    ],
)
def test_where_it_cannot_apply(fields, batch, message):
    config = make_config(**fields)
    validate(config)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        scale_to_batch(config, 16, batch)
    assert "\n" not in str(error.value)
