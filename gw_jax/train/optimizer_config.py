"""The typed configuration of the optimiser and of the learning rate."""

import dataclasses
import itertools
import math
import re

from gw_jax.config_checks import choice, number
from gw_jax.errors import ConfigError

OPTIMIZERS = ("sgd", "lars", "adamw")
SCHEDULES = ("constant", "step", "cosine", "polynomial")
_FACTOR = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?")


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimizerConfig:
    """The optimiser.

    "sgd" is PyTorch's: ``v <- momentum v + g + weight_decay p``, ``p <- p - learning_rate v``. "lars", for batches of many
    thousands (You et al. 2017), scales ``u = g + weight_decay p`` of each parameter by the trust ratio
    ``trust_coefficient ||p|| / ||u||`` before the same momentum, and by ``trust_coefficient`` where ``p`` is all zero.
    "adamw" (Loshchilov and Hutter 2019) has the decay rates ``momentum`` and ``beta2``; its weight decay is decoupled.

    Patterns are regular expressions that are searched in a parameter's path, such as "stage1/0/norm1/scale".

    Attributes:
        name: "sgd", "lars" or "adamw".
        learning_rate: peak learning rate.
        momentum: decay of the velocity; of the first moment for "adamw".
        nesterov: whether to use Nesterov's form of momentum.
        beta2: decay of the second moment, for "adamw".
        epsilon: added to the square root of the second moment, for "adamw".
        weight_decay: coefficient of the L2 term.
        no_decay: patterns of parameters without weight decay and without a trust ratio. Empty, the reference's choice,
            decays all. ``("scale$", "bias$")`` exempts norms and biases.
        trust_coefficient: of "lars".
        learning_rate_factors: ``PATTERN=FACTOR``: parameters whose path matches have that multiple of the learning rate;
            the first match counts.
        frozen: patterns of parameters that are not trained; the running statistics of their layers still change.

    Example:
        >>> from gw_jax.train import OptimizerConfig
        >>> OptimizerConfig(learning_rate=0.4, frozen=("^stem",), learning_rate_factors=("bias$=2.0",)).check()
    """

    name: str = choice("sgd", OPTIMIZERS)
    learning_rate: float = number(0.1, 0)
    momentum: float = number(0.9, 0, 1)
    nesterov: bool = False
    beta2: float = number(0.999, 0, 0.999999999)
    epsilon: float = number(1e-8, 0)
    weight_decay: float = number(1e-4, 0)
    no_decay: tuple[str, ...] = ()
    trust_coefficient: float = number(0.001, 0)
    learning_rate_factors: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    def check(self) -> None:
        """Checks the patterns, and fields against each other.

        Raises:
            ConfigError: a pattern that is no regular expression, a factor that is no number, ``nesterov`` without momentum,
                or a ``momentum`` of 1 with "adamw", whose bias correction divides by ``1 - momentum``.
        """
        if self.name == "adamw" and self.momentum == 1:
            raise ConfigError("config.optimizer.momentum=1.0 is out of range for adamw; choose less than 1 (0.9 is usual).")
        if self.nesterov and not self.momentum:
            raise ConfigError(
                "config.optimizer.nesterov=True has no effect with config.optimizer.momentum=0; set one of them."
            )
        for field in ("no_decay", "frozen"):
            for pattern in getattr(self, field):
                _check_pattern(field, pattern)
        for entry in self.learning_rate_factors:
            pattern, _, factor = entry.rpartition("=")
            if not pattern or not _FACTOR.fullmatch(factor) or not math.isfinite(float(factor)):
                raise ConfigError(
                    f"config.optimizer.learning_rate_factors={entry!r}; give PATTERN=FACTOR, such as bias$=2.0."
                )
            _check_pattern("learning_rate_factors", pattern)


@dataclasses.dataclass(slots=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run. A length that is given in steps and in epochs counts in steps.

    Attributes:
        name: "constant", "step" (times ``gamma`` at every milestone), "cosine" or "polynomial" (both to zero at the end).
        warmup_epochs: epochs of linear warm-up; they are part of the schedule.
        warmup_steps: the same in steps.
        warmup_from: fraction of the peak learning rate at which the warm-up starts.
        step_epochs: epochs between two milestones, where neither list below is given.
        milestones: epochs after which the learning rate falls.
        milestone_steps: the same in steps.
        gamma: factor at a milestone.
        power: exponent of the polynomial ``(1 - progress)^power``.

    Example:
        >>> from gw_jax.train import ScheduleConfig
        >>> ScheduleConfig(name="step", milestones=(30, 60, 90), warmup_epochs=5).check()
    """

    name: str = choice("step", SCHEDULES)
    warmup_epochs: float = number(0.0, 0)
    warmup_steps: int | None = number(None, 0)
    warmup_from: float = number(0.0, 0, 1)
    step_epochs: float = number(30.0, 1e-6)
    milestones: tuple[float, ...] = ()
    milestone_steps: tuple[int, ...] = ()
    gamma: float = number(0.1, 0)
    power: float = number(2.0, 0)

    def check(self) -> None:
        """Checks fields against each other.

        Raises:
            ConfigError: milestones that do not rise, are given in both units, or have no effect on this schedule; or a
                ``warmup_from`` without a warm-up.
        """
        if self.name != "step" and (self.milestones or self.milestone_steps):
            field = "milestones" if self.milestones else "milestone_steps"
            raise ConfigError(
                f"config.schedule.{field} has no effect on config.schedule.name={self.name!r}; "
                "leave it out, or choose 'step'."
            )
        if self.warmup_from and not (self.warmup_epochs if self.warmup_steps is None else self.warmup_steps):
            raise ConfigError(
                f"config.schedule.warmup_from={self.warmup_from} has no effect without a warm-up; set "
                "config.schedule.warmup_epochs or config.schedule.warmup_steps, or leave it out."
            )
        if self.milestones and self.milestone_steps:
            raise ConfigError("config.schedule.milestones and config.schedule.milestone_steps are both set; set one.")
        for field in ("milestones", "milestone_steps"):
            values = getattr(self, field)
            if any(value <= 0 for value in values) or any(a >= b for a, b in itertools.pairwise(values)):
                raise ConfigError(f"config.schedule.{field}={values} must be above 0, each larger than the one before.")


def _check_pattern(field: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"config.optimizer.{field}={pattern!r} is not a regular expression: {error}.") from error
