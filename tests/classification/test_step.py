"""One network, one order of the data, any number of devices: the same losses."""

import contextlib
import re

import jax
import numpy as np
import pytest

from gw_jax.train.experiment import build_experiment
from gw_jax.versions import enable_x64

STEPS = 20


def losses(config, num_devices):
    """Losses of the first steps, and the state after them, on ``num_devices`` devices."""
    experiment = build_experiment(config, jax.devices()[:num_devices])
    batches = experiment.task.train_batches(config.num_epochs, 0, 1)
    state, history = experiment.state, []
    for _ in range(STEPS):
        state, metrics = experiment.train_step(state, experiment.shard_batch(next(batches)))
        history.append(metrics["loss"][0])
    return np.asarray(jax.device_get(history)), jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "bound", "group_size"),
    [
        pytest.param("float64", 1e-9, None, marks=pytest.mark.long),
        ("float64", 1e-9, 2),
        pytest.param("float32", 1e-3, 2, marks=pytest.mark.long),
    ],
)
def test_eight_devices_train_as_one(config, dtype, bound, group_size):
    """``group_size`` 2 is smaller than the 4 examples of a device."""
    config.dtype, config.data.batch_size, config.data.flip = dtype, 32, True
    config.num_epochs = 4
    config.model.batch_norm_group_size = group_size
    # Stages of more than one pixel, and steps so small that float32 rounding, which moves activations across the kink of
    # the ReLU, does not send the two runs along different paths.
    config.model.stem, config.optimizer.learning_rate = "small", 0.0005
    with enable_x64() if dtype == "float64" else contextlib.nullcontext():
        one, state = losses(config, 1)
        eight, other = losses(config, 8)
    assert one.dtype == dtype
    assert len(set(one.tolist())) == STEPS
    np.testing.assert_allclose(eight, one, rtol=bound)
    for a, b in zip(jax.tree.leaves(state.batch_stats), jax.tree.leaves(other.batch_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=100 * bound, atol=100 * bound)


def exchanges(config):
    """The number of collectives in the compiled training step on four devices."""
    experiment = build_experiment(config, jax.devices()[:4])
    batches = experiment.task.train_batches(config.num_epochs, 0, 1)
    text = experiment.train_step.lower(experiment.state, experiment.shard_batch(next(batches))).compile().as_text()
    assert not re.findall(r"(?:all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    return len(re.findall(r"all-reduce(?:-start)?\(", text))


@pytest.mark.slow
def test_batch_norm_in_groups_exchanges_nothing_but_gradients(config):
    config.model.batch_norm_group_size = 2
    # All gradients, the loss and top-1 at once.
    assert exchanges(config) == 1
    config.model.batch_norm_group_size = None
    assert exchanges(config) > 5
