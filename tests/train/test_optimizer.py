import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gw_jax.errors import ConfigError
from gw_jax.train import OptimizerConfig, ScheduleConfig, TrainConfig
from gw_jax.train.optimizer import check_patterns, make_optimizer, matching
from gw_jax.train.schedule import Length, check_schedule, make_schedule

STEPS, EPOCHS, PEAK = 10, 100, 0.4


def rate(config, epoch):
    return float(make_schedule(config, PEAK, STEPS, STEPS * EPOCHS)(round(epoch * STEPS)))


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


def test_patterns_search_paths():
    params = {"stage1": {0: {"norm1": {"scale": 1, "bias": 2}, "conv1": {"kernel": 3}}}, "head": {"kernel": 4, "bias": 5}}
    assert not any(jax.tree.leaves(matching(params, ())))
    assert matching(params, ("scale$", "^stage1/0/.*bias$")) == {
        "stage1": {0: {"norm1": {"scale": True, "bias": True}, "conv1": {"kernel": False}}},
        "head": {"kernel": False, "bias": False},
    }


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_milestones_and_warm_up_in_epochs_and_in_steps(unit):
    """As detectors train: from a third of the rate in 50 steps, then a tenth after 600 and 800 steps."""
    config = ScheduleConfig(name="step", gamma=0.1, warmup_from=1 / 3)
    if unit == "epochs":
        config.warmup_epochs, config.milestones = 5.0, (60.0, 80.0)
    else:
        config.warmup_steps, config.milestone_steps = 50, (600, 800)
    schedule = make_schedule(config, PEAK, STEPS, STEPS * EPOCHS)
    expected = {0: 1 / 3, 25: 2 / 3, 50: 1, 599: 1, 600: 0.1, 799: 0.1, 800: 0.01, 999: 0.01}
    for step, factor in expected.items():
        assert float(schedule(step)) == pytest.approx(PEAK * factor, rel=1e-5)


def test_milestones_of_one_step_all_count():
    config = ScheduleConfig(name="step", gamma=0.5, milestones=(2.0, 2.01, 3.0))
    assert [rate(config, epoch) / PEAK for epoch in (1.9, 2, 3)] == pytest.approx([1, 0.25, 0.125])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ScheduleConfig(name="cosine", milestones=(2.0,)),
            "schedule.milestones has no effect on config.schedule.name='cos",
        ),
        (ScheduleConfig(name="constant", milestone_steps=(2,)), "schedule.milestone_steps has no effect on"),
        (ScheduleConfig(warmup_from=0.5), "schedule.warmup_from=0.5 has no effect without a warm-up"),
        (ScheduleConfig(warmup_from=0.5, warmup_epochs=1.0, warmup_steps=0), "has no effect without a warm-up"),
        (OptimizerConfig(name="adamw", momentum=1.0), "optimizer.momentum=1.0 is out of range for adamw"),
        (OptimizerConfig(nesterov=True, momentum=0.0), "nesterov=True has no effect with config.optimizer.momentum=0"),
        (OptimizerConfig(learning_rate_factors=("bias$=1e400",)), "learning_rate_factors='bias\\$=1e400'"),
    ],
)
def test_fields_without_effect_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        config.check()


def test_a_schedule_is_compared_with_the_length_of_the_run(capsys):
    length = Length.of(TrainConfig(num_steps=15), STEPS)
    check_schedule(ScheduleConfig(warmup_epochs=1.5), length)
    assert capsys.readouterr().err == ""
    check_schedule(ScheduleConfig(warmup_epochs=1.6), length)
    assert (
        "warning: config.schedule.warmup_epochs=1.6 is a warm-up of 16 steps, and the run has 15" in capsys.readouterr().err
    )
    with pytest.raises(ConfigError, match=r"step_epochs=0.05 is less than one step; an epoch has 10 steps"):
        check_schedule(ScheduleConfig(step_epochs=0.05), length)


def updates_of(config, params, grads, count=1):
    """The parameters after ``count`` steps at the learning rate of ``config``."""
    optimizer = make_optimizer(config, optax.constant_schedule(config.learning_rate))
    state = optimizer.init(params)
    for _ in range(count):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_lars_scales_each_parameter(float64):
    config = OptimizerConfig(
        name="lars", learning_rate=2.0, momentum=0.9, weight_decay=0.1, no_decay=("bias$",), trust_coefficient=0.01
    )
    params = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([1.0])}
    grads = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
    found = updates_of(config, params, grads, 2)
    kernel, velocity = np.array([3.0, 4.0]), 0.0
    bias, slow = 1.0, 0.0
    for _ in range(2):
        u = np.array([1.0, -2.0]) + 0.1 * kernel
        velocity = 0.9 * velocity + 0.01 * np.linalg.norm(kernel) / np.linalg.norm(u) * u
        kernel = kernel - 2.0 * velocity
        slow = 0.9 * slow + 0.5
        bias = bias - 2.0 * slow
    np.testing.assert_allclose(found["kernel"], kernel, rtol=1e-12)
    np.testing.assert_allclose(found["bias"], [bias], rtol=1e-12)


def test_lars_does_not_rush_a_parameter_of_zeros(float64):
    """A trust ratio of 1 would move it a thousand times as far as any other."""
    config = OptimizerConfig(name="lars", learning_rate=2.0, momentum=0.0, weight_decay=0.0, trust_coefficient=0.001)
    found = updates_of(config, {"bias": jnp.zeros(2)}, {"bias": jnp.array([0.5, -1.0])})
    np.testing.assert_allclose(found["bias"], [-0.001, 0.002], rtol=1e-12)


def test_adamw_is_the_published_recurrence(float64):
    config = OptimizerConfig(
        name="adamw", learning_rate=0.01, momentum=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1, no_decay=("bias$",)
    )
    params = {"kernel": jnp.array([3.0]), "bias": jnp.array([1.0])}
    grads = {"kernel": jnp.array([0.5]), "bias": jnp.array([-0.2])}
    found = updates_of(config, params, grads, 3)
    for name, decay in (("kernel", 0.1), ("bias", 0.0)):
        p, g, m, v = float(params[name][0]), float(grads[name][0]), 0.0, 0.0
        for step in range(1, 4):
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            p -= 0.01 * (m / (1 - 0.8**step) / (math.sqrt(v / (1 - 0.95**step)) + 1e-6) + decay * p)
        np.testing.assert_allclose(found[name], [p], rtol=1e-9)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_factors_and_frozen_parameters(float64, name):
    params = {"stem": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    plain = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.1)
    changed = OptimizerConfig(
        name=name, learning_rate=0.1, weight_decay=0.1, learning_rate_factors=("bias$=2.0",), frozen=("^stem",)
    )
    before, after = updates_of(plain, params, grads), updates_of(changed, params, grads)
    np.testing.assert_array_equal(after["stem"]["kernel"], params["stem"]["kernel"])
    np.testing.assert_array_equal(after["head"]["kernel"], before["head"]["kernel"])
    np.testing.assert_allclose(after["head"]["bias"] - 1, 2 * (before["head"]["bias"] - 1), rtol=1e-12)


def test_patterns_that_match_nothing_are_named(capsys):
    params = {"head": {"kernel": jnp.ones(2)}}
    with pytest.raises(ConfigError, match=r"learning_rate_factors names 'bias\$'"):
        check_patterns(OptimizerConfig(learning_rate_factors=("bias$=2",)), params)
    check_patterns(OptimizerConfig(no_decay=("kernel$", "baias$")), params)
    assert (
        capsys.readouterr().err == "warning: config.optimizer.no_decay names 'baias$', which no parameter's path matches.\n"
    )
    with pytest.raises(ConfigError, match=r"freezes every parameter"):
        check_patterns(OptimizerConfig(frozen=("head",)), params)
    with pytest.raises(ConfigError, match=r"learning_rate_factors='bias\$'; give PATTERN=FACTOR"):
        OptimizerConfig(learning_rate_factors=("bias$",)).check()
