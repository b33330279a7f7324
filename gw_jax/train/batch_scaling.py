"""The linear scaling rule: a recipe for one batch size, used with another."""

import dataclasses

from gw_jax.errors import ConfigError
from gw_jax.train.config import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Scaled:
    """What the rule changes.

    Attributes:
        optimizer: with another learning rate.
        schedule: with another warm-up and other milestones, where they are in steps.
        num_steps: length of the run; None where it is in epochs.
        eval_every_steps: steps between evaluations; None where they are in epochs.
        summary: one line that names each change.
    """

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    num_steps: int | None
    eval_every_steps: int | None
    summary: str


def scale_to_batch(config: TrainConfig, reference: int, batch_size: int) -> Scaled:
    """Scales the learning rate and the lengths in steps of ``config`` from batches of ``reference`` to ``batch_size``.

    The learning rate is proportional to the batch, the number of steps inversely so: as many examples are seen at every
    part of the schedule. Lengths in epochs stay. A microbatch of ``accumulate_steps`` is no batch of its own.

    Args:
        config: made for batches of ``reference``.
        reference: examples per step.
        batch_size: those of the run.

    Raises:
        ConfigError: the optimiser is not SGD, whose rule this is, or a length becomes less than one step or two milestones
            the same.

    Source: Goyal et al., Accurate, Large Minibatch SGD (2017), section 2.1; the README of maskrcnn-benchmark.

    Example:
        >>> from gw_jax.train import OptimizerConfig, TrainConfig
        >>> from gw_jax.train.batch_scaling import scale_to_batch
        >>> scale_to_batch(TrainConfig(num_steps=100, optimizer=OptimizerConfig(learning_rate=0.4)), 16, 4).num_steps
        400
    """
    if config.optimizer.name != "sgd":
        raise ConfigError(
            f"config.scale_to_batch=True is the rule of SGD, and config.optimizer.name={config.optimizer.name!r}; set "
            "config.optimizer.learning_rate for the batch yourself, or choose 'sgd'."
        )
    changes: list[str] = []

    def steps(name: str, value: int | None) -> int | None:
        if not value:
            return value
        # A schedule counts the steps that are done, one less than the number of the step where it changes.
        shift = 1 if name.startswith("schedule.") else 0
        scaled = round((value + shift) * reference / batch_size) - shift
        if scaled < 1:
            raise ConfigError(
                f"config.scale_to_batch=True makes config.{name}={value} less than one step, from batches of {reference} "
                f"to {batch_size}; choose a smaller batch."
            )
        changes.append(f"{name} {value:,} to {scaled:,}")
        return scaled

    rate = config.optimizer.learning_rate * batch_size / reference
    changes.append(f"optimizer.learning_rate {config.optimizer.learning_rate:g} to {rate:g}")
    num_steps = steps("num_steps", config.num_steps)
    eval_every_steps = steps("eval_every_steps", config.eval_every_steps)
    warmup = steps("schedule.warmup_steps", config.schedule.warmup_steps)
    milestones = tuple(steps("schedule.milestone_steps", step) or 0 for step in config.schedule.milestone_steps)
    if len(set(milestones)) < len(milestones):
        raise ConfigError(
            f"config.scale_to_batch=True makes config.schedule.milestone_steps={config.schedule.milestone_steps} the same "
            f"step, from batches of {reference} to {batch_size}; choose a smaller batch."
        )
    return Scaled(
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        schedule=dataclasses.replace(config.schedule, warmup_steps=warmup, milestone_steps=milestones),
        num_steps=num_steps,
        eval_every_steps=eval_every_steps,
        summary=f"Scaled from batches of {reference} to {batch_size}: {', '.join(changes)}.",
    )
