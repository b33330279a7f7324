"""The length of a run in steps, and its learning-rate schedule."""

import collections
import dataclasses
import sys

import optax

from gw_jax.errors import ConfigError
from gw_jax.train.config import ScheduleConfig, TrainConfig
from gw_jax.train.distributed import is_main


@dataclasses.dataclass(frozen=True)
class Length:
    """The length of a run, and the steps at which it evaluates and saves.

    Attributes:
        steps_per_epoch: training steps per epoch.
        total_steps: steps of the run.
        num_epochs: epochs that have begun when it ends.
    """

    steps_per_epoch: int
    total_steps: int
    num_epochs: int
    _config: TrainConfig

    @classmethod
    def of(cls, config: TrainConfig, steps_per_epoch: int) -> "Length":
        """The length that ``config`` describes."""
        total = config.num_epochs * steps_per_epoch if config.num_steps is None else config.num_steps
        return cls(steps_per_epoch, total, -(-total // steps_per_epoch), config)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends with ``step``."""
        return step > 0 and step % self.steps_per_epoch == 0

    def epoch(self, step: int) -> float:
        """The number of epochs done after ``step`` steps; an int where it is whole."""
        epoch = round(step / self.steps_per_epoch, 4)
        return int(epoch) if epoch == int(epoch) else epoch

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due after ``step`` steps."""
        if step == 0:
            return False
        if step == self.total_steps:
            return True
        if self._config.eval_every_steps is not None:
            return step % self._config.eval_every_steps == 0
        return step % (self.steps_per_epoch * self._config.eval_every_epochs) == 0

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps, without an evaluation."""
        every = self._config.checkpoint
        in_steps = every.every_steps is not None and step % every.every_steps == 0
        in_epochs = every.every_epochs is not None and step % (self.steps_per_epoch * every.every_epochs) == 0
        return step > 0 and (in_steps or in_epochs)


def make_schedule(config: ScheduleConfig, learning_rate: float, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of steps done.

    With ``w`` steps of warm-up and ``t = (step - w) / (total_steps - w)``, "constant" is ``learning_rate``, "step" is
    ``learning_rate * gamma^k`` after ``k`` milestones, "cosine" is ``learning_rate * (1 + cos(pi t)) / 2`` and "polynomial"
    is ``learning_rate * (1 - t)^power``. The first ``w`` steps rise linearly from ``warmup_from * learning_rate`` instead.

    Args:
        config: the kind of schedule, the warm-up and the milestones.
        learning_rate: the peak.
        steps_per_epoch: training steps per epoch.
        total_steps: steps of the run.
    """
    warmup = _warmup_steps(config, steps_per_epoch)
    peak = learning_rate
    if config.name == "constant":
        after = optax.constant_schedule(learning_rate)
    elif config.name == "step":
        boundaries = _milestones(config, steps_per_epoch, total_steps)
        # Milestones are counted from the start of the run, join_schedules counts from the end of the warm-up.
        peak *= config.gamma ** sum(boundary <= warmup for boundary in boundaries)
        # Milestones may round to one step, and all of them count.
        later = collections.Counter(boundary - warmup for boundary in boundaries if boundary > warmup)
        after = optax.piecewise_constant_schedule(peak, {step: config.gamma**count for step, count in later.items()})
    elif config.name == "polynomial":
        after = optax.polynomial_schedule(learning_rate, 0.0, config.power, max(total_steps - warmup, 1))
    else:
        after = optax.cosine_decay_schedule(learning_rate, max(total_steps - warmup, 1))
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(config.warmup_from * peak, peak, warmup), after], [warmup])


def check_schedule(config: ScheduleConfig, length: Length) -> None:
    """Checks the schedule against the length of the run; warns of a warm-up that a short trial does not finish.

    Raises:
        ConfigError: milestones follow each other within one step.
    """
    warmup = _warmup_steps(config, length.steps_per_epoch)
    if warmup > length.total_steps:
        field = "warmup_epochs" if config.warmup_steps is None else "warmup_steps"
        if is_main():
            print(
                f"warning: config.schedule.{field}={getattr(config, field)} is a warm-up of {warmup} steps, and the run "
                f"has {length.total_steps}; it ends below config.optimizer.learning_rate.",
                file=sys.stderr,
            )
    by_epochs = config.name == "step" and not config.milestones and not config.milestone_steps
    if by_epochs and config.step_epochs * length.steps_per_epoch < 1:
        raise ConfigError(
            f"config.schedule.step_epochs={config.step_epochs} is less than one step; an epoch has "
            f"{length.steps_per_epoch} steps."
        )


def _warmup_steps(config: ScheduleConfig, steps_per_epoch: int) -> int:
    return round(config.warmup_epochs * steps_per_epoch) if config.warmup_steps is None else config.warmup_steps


def _milestones(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> list[int]:
    if config.milestone_steps:
        return list(config.milestone_steps)
    if config.milestones:
        return [round(epoch * steps_per_epoch) for epoch in config.milestones]
    count = int(total_steps / steps_per_epoch / config.step_epochs)
    return [round(k * config.step_epochs * steps_per_epoch) for k in range(1, count + 1)]
