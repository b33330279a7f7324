"""Momentum and epochs of training dicts. No file and no PyTorch is needed."""

import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.convert import load
from gw_jax.convert.entries import entries
from gw_jax.errors import CheckpointError
from gw_jax.models.remembered import abstract_model

NETWORK = {"name": "resnet18", "num_classes": 5, "width": 8, "norm_options": {"num_groups": 4}}


def interpret(reference, state, training):
    options = load.LoadOptions(norm_cfg={"num_groups": 4})
    return load.load_state(reference.in_memory(state, training), "file.pth", options)


def state_of(reference):
    model = abstract_model(NETWORK, None, jnp.float32)
    return reference.make_state([(entry.key, entry.shape) for entry in entries(model)])


def momentum_of(reference, state, keys, order):
    """A training dict whose momentum is twice the parameter, numbered by ``order``."""
    buffers = {number: {"momentum_buffer": 2 * state[key]} for key, number in zip(keys, order, strict=True)}
    return {
        "epoch": 3,
        "optimizer": {"state": buffers, "param_groups": [{"params": list(order), "lr": 0.1}, {"params": []}]},
    }


@pytest.mark.parametrize("ids", [False, True])
def test_momentum_by_number_and_by_id(reference, ids):
    state = state_of(reference)
    keys = [key for key in state if "running" not in key and not key.endswith("tracked")]
    # PyTorch 1.0 named parameters by their address, later versions by their number.
    order = [140000000000 - 64 * index for index in range(len(keys))] if ids else list(range(len(keys)))
    training = momentum_of(reference, state, keys, order)
    imported = interpret(reference, state, training)
    momentum = imported.training.momentum
    assert imported.training.facts == {"learning_rate": 0.1}
    np.testing.assert_array_equal(momentum["stage2.0.conv1.kernel"], 2 * imported.arrays["stage2.0.conv1.kernel"])
    assert len(momentum) == len(keys)
    assert all(np.array_equal(value, 2 * imported.arrays[path]) for path, value in momentum.items())


def test_momentum_that_does_not_fit(reference):
    state = state_of(reference)
    keys = [key for key in state if "running" not in key and not key.endswith("tracked")]
    training = momentum_of(reference, state, keys, range(len(keys)))
    training["optimizer"]["state"][3]["momentum_buffer"] = np.zeros(2)
    with pytest.raises(CheckpointError, match=r"The momentum of 'layer1\.0\.conv1\.weight' is of shape"):
        interpret(reference, state, training)
    adam = {"optimizer": {"state": {0: {"exp_avg": state["fc.bias"]}}, "param_groups": [{"params": [0]}]}}
    imported = interpret(reference, state, adam)
    assert not imported.training.momentum
    assert any("not that of SGD with momentum" in notice for notice in imported.report.notices)
