import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gw_jax.train import OptimizerConfig, ScheduleConfig
from gw_jax.train.schedule import decay_mask, make_optimizer, make_schedule

STEPS, EPOCHS, PEAK = 10, 100, 0.4


def rate(config, epoch):
    return float(make_schedule(config, PEAK, STEPS, EPOCHS)(round(epoch * STEPS)))


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1), (29.9, 1), (30, 0.1), (59.9, 0.1), (60, 0.01), (90, 1e-3), (99.9, 1e-3)]
)
def test_steps_of_the_paper(epoch, factor):
    assert rate(ScheduleConfig(name="step", step_epochs=30, gamma=0.1), epoch) == pytest.approx(PEAK * factor, rel=1e-5)


@pytest.mark.parametrize("epoch", [0, 10, 50, 99.9, 100])
def test_cosine(epoch):
    expected = PEAK * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
    assert rate(ScheduleConfig(name="cosine"), epoch) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_warm_up_is_linear_and_part_of_the_schedule(name):
    config = ScheduleConfig(name=name, warmup_epochs=5)
    for epoch in (0, 1, 2.5, 4.9):
        assert rate(config, epoch) == pytest.approx(PEAK * epoch / 5, rel=1e-5)
    assert rate(config, 5) == pytest.approx(PEAK, rel=1e-5)
    if name == "step":
        assert rate(config, 29.9) == pytest.approx(PEAK, rel=1e-5)
        assert rate(config, 30) == pytest.approx(PEAK * 0.1, rel=1e-5)
    if name == "cosine":
        assert rate(config, 52.5) == pytest.approx(PEAK / 2, rel=1e-5)
        assert rate(config, 100) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_recurrence_of_pytorch(nesterov):
    config = OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    p = np.asarray([1.0, -2.0])
    params, velocity = {"w": jnp.asarray(p, jnp.float32)}, np.zeros(2)
    state = optimizer.init(params)
    for step in range(4):
        g = np.asarray([0.3, 0.1 * step])
        d = g + 0.01 * p
        velocity = 0.9 * velocity + d
        p = p - 0.1 * (d + 0.9 * velocity if nesterov else velocity)
        updates, state = optimizer.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], p, rtol=1e-5)


def test_decay_mask_goes_by_name():
    params = {"stage1": {0: {"norm1": {"scale": 1, "bias": 2}, "conv1": {"kernel": 3}}}, "head": {"kernel": 4, "bias": 5}}
    assert decay_mask(params, ()) == {
        "stage1": {0: {"norm1": {"scale": True, "bias": True}, "conv1": {"kernel": True}}},
        "head": {"kernel": True, "bias": True},
    }
    assert decay_mask(params, ("scale$", "^stage1/0/.*bias$")) == {
        "stage1": {0: {"norm1": {"scale": False, "bias": False}, "conv1": {"kernel": True}}},
        "head": {"kernel": True, "bias": True},
    }
