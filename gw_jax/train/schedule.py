"""Learning-rate schedules and the optimiser, from their configurations."""

import re
from typing import Any

import jax
import optax

from gw_jax.train.config import OptimizerConfig, ScheduleConfig


def make_schedule(config: ScheduleConfig, learning_rate: float, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """The learning rate as a function of the number of steps taken.

    With ``e = step / steps_per_epoch``: "constant" is ``learning_rate``; "step" is ``learning_rate * gamma^floor(e /
    step_epochs)``; with ``t = (e - w) / (num_epochs - w)``, "cosine" is ``learning_rate * (1 + cos(pi t)) / 2`` and
    "polynomial" is ``learning_rate * (1 - t)^power``. The first ``w = warmup_epochs`` epochs go up linearly from zero to
    the peak instead.
    """
    total = num_epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.name == "constant":
        after = optax.constant_schedule(learning_rate)
    elif config.name == "step":
        count = int(num_epochs / config.step_epochs)
        boundaries = [round(k * config.step_epochs * steps_per_epoch) for k in range(1, count + 1)]
        # Boundaries are counted from the start of the run, join_schedules counts from the end of the warm-up.
        learning_rate *= config.gamma ** sum(boundary <= warmup for boundary in boundaries)
        later = {boundary - warmup: config.gamma for boundary in boundaries if boundary > warmup}
        after = optax.piecewise_constant_schedule(learning_rate, later)
    elif config.name == "polynomial":
        after = optax.polynomial_schedule(learning_rate, 0.0, config.power, max(total - warmup, 1))
    else:
        after = optax.cosine_decay_schedule(learning_rate, max(total - warmup, 1))
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with momentum, or LARS. L2 weight decay is added to the gradient before the momentum, as in PyTorch."""

    def mask(params: Any) -> Any:
        return decay_mask(params, config.no_decay)

    momentum = config.momentum or None
    if config.name == "lars":
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=mask),
            optax.masked(optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient), mask),
            optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov),
        )
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=mask),
        optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov),
    )


def decay_mask(params: Any, no_decay: tuple[str, ...]) -> Any:
    """True for every parameter that is decayed: no pattern of ``no_decay`` matches its path, "stage1/0/norm1/scale"."""
    patterns = [re.compile(pattern) for pattern in no_decay]

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(pattern.search(name) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(decays, params)
