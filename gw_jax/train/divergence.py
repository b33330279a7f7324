"""The error of a run whose loss or gradient is not finite."""

import math
import pathlib
from collections.abc import Mapping

from gw_jax.errors import TrainingError
from gw_jax.train.config import TrainConfig


def divergence_error(
    step: int, metrics: Mapping[str, float], learning_rate: float, config: TrainConfig, last_good: pathlib.Path | None
) -> TrainingError:
    """Names the step, the parts of the loss that are not finite, the learning rate, and what to change.

    Args:
        step: the first step with a metric that is not finite.
        metrics: its metrics, "loss" and "grad_norm" among them; the others may be parts of the loss.
        learning_rate: of that step.
        config: the run.
        last_good: the newest checkpoint; None for none.
    """
    parts = [
        f"{name} is {value}"
        for name, value in metrics.items()
        if name not in ("loss", "grad_norm") and not math.isfinite(value)
    ]
    which = f" ({', '.join(parts)})" if parts else ""
    good = "Nothing was saved before." if last_good is None else f"The last good checkpoint is {last_good}."
    warmup = "warmup_epochs" if config.schedule.warmup_steps is None else "warmup_steps"
    advice = config.advice_on_divergence()
    return TrainingError(
        f"At step {step} the loss is {metrics['loss']}{which} and the norm of its gradient {metrics['grad_norm']}; both "
        f"must be finite. Training stopped, and this state was not saved. {good} Lower config.optimizer.learning_rate "
        f"({learning_rate:.3g} at that step) or lengthen config.schedule.{warmup}, in another --workdir."
        f"{f' {advice}' if advice else ''}"
    )
