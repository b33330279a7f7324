"""The reference's learning rates and its SGD, against the golden files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.recipes import reference_optimizer, reference_schedule
from gw_jax.train.config import OptimizerConfig
from gw_jax.train.optimizer import make_optimizer
from gw_jax.train.schedule import make_schedule
from gw_jax.versions import enable_x64
from tests.detection import golden


def test_every_learning_rate_of_the_table():
    table = golden.load("ops/tables")["lr_table"]
    assert len(table) == 150
    for base, first, second in sorted({tuple(row) for row in table[:, :3].tolist()}):
        schedule = make_schedule(reference_schedule(int(first), int(second)), base, 1000, int(second) + 10_000)
        rows = table[(table[:, :3] == (base, first, second)).all(1)]
        np.testing.assert_allclose(jax.vmap(schedule)(rows[:, 3].astype(int) - 1), rows[:, 4], rtol=1e-6)


@pytest.mark.parametrize("start", ["from0", "from79998"])
def test_sgd_is_the_references(start):
    """Biases have twice the learning rate and no decay, scales of norms decay, and what is frozen stays."""
    data = golden.load("ops/sgd")
    names = sorted({name.removeprefix("start.") for name in data if name.startswith("start.")})
    frozen = [name for name in names if name.startswith("frozen.")]
    config = reference_optimizer(0.02)
    config.frozen = ("^frozen",)
    assert frozen
    with enable_x64():
        params = {name.replace(".", "/"): jnp.asarray(data[f"start.{name}"]) for name in names}
        steps = [int(data[f"{start}.iteration{i}"]) for i in range(1, 5)]
        rates = [float(data[f"{start}.lr{i}"]) for i in range(1, 5)]
        optimizer = make_optimizer(config, lambda count: jnp.asarray(rates)[count])
        state = optimizer.init(params)
        for index in range(1, 5):
            gradients = {
                name.replace(".", "/"): jnp.asarray(
                    data.get(f"{start}.grad{index}.{name}", np.zeros_like(data[f"start.{name}"]))
                )
                for name in names
            }
            updates, state = optimizer.update(gradients, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            for name in names:
                expected = data.get(f"{start}.param_after{index}.{name}", data[f"start.{name}"])
                np.testing.assert_allclose(params[name.replace(".", "/")], expected, rtol=0, atol=1e-12, err_msg=name)
        assert steps == list(range(steps[0], steps[0] + 4))


def test_defaults_are_the_published_ones():
    config = reference_optimizer(0.02)
    assert isinstance(config, OptimizerConfig)
    assert (config.momentum, config.weight_decay, config.nesterov) == (0.9, 1e-4, False)
