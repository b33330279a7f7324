"""The message of a loss that is not finite."""

import pathlib

import pytest

from gw_jax.train import ScheduleConfig, TrainConfig
from gw_jax.train.divergence import divergence_error

METRICS = {"loss": float("nan"), "loss_a": 1.5, "loss_b": float("inf"), "loss_c": float("nan"), "grad_norm": float("nan")}


def test_it_names_step_parts_rate_and_what_to_change():
    error = divergence_error(7, METRICS, 0.0123456, TrainConfig(), pathlib.Path("runs/mine/checkpoints/5"))
    assert str(error) == (
        "At step 7 the loss is nan (loss_b is inf, loss_c is nan) and the norm of its gradient nan; both must be finite. "
        "Training stopped, and this state was not saved. The last good checkpoint is runs/mine/checkpoints/5. Lower "
        "config.optimizer.learning_rate (0.0123 at that step) or lengthen config.schedule.warmup_epochs, in another "
        "--workdir."
    )


@pytest.mark.parametrize(("steps", "field"), [(None, "warmup_epochs"), (10, "warmup_steps")])
def test_it_names_the_field_of_the_warmup_that_is_used(steps, field):
    config = TrainConfig(schedule=ScheduleConfig(warmup_steps=steps))
    message = str(divergence_error(1, {"loss": 2.0, "grad_norm": float("inf")}, 0.1, config, None))
    assert message.startswith("At step 1 the loss is 2.0 and the norm of its gradient inf; both must be finite.")
    assert f"lengthen config.schedule.{field}," in message
    assert "Nothing was saved before." in message
