"""The reference's optimiser and schedule for detectors."""

from gw_jax.train.config import OptimizerConfig, ScheduleConfig

# What the reference does not train: FREEZE_CONV_BODY_AT 2. Its frozen BatchNorms have no parameters here.
FROZEN = ("^backbone/stem_", "^backbone/stage1/")
_WARMUP_STEPS = 500


def reference_optimizer(learning_rate: float) -> OptimizerConfig:
    """SGD with momentum 0.9 and weight decay 1e-4; biases have twice the learning rate and no decay.

    Scales of norms decay like weights. The stem and the first stage are frozen.

    Source: the solver of the reference's nine configurations.

    Example:
        >>> from gw_jax.detection.recipes import reference_optimizer
        >>> reference_optimizer(0.02).learning_rate_factors
        ('bias$=2.0',)
    """
    return OptimizerConfig(
        name="sgd",
        learning_rate=learning_rate,
        momentum=0.9,
        weight_decay=1e-4,
        no_decay=("bias$",),
        learning_rate_factors=("bias$=2.0",),
        frozen=FROZEN,
    )


def reference_schedule(*milestones: int) -> ScheduleConfig:
    """A tenth of the learning rate from each of the iterations ``milestones`` on, after a warm-up of 500 iterations.

    The reference counts iterations from 1, and iteration ``k < 500`` has ``1/3 + 2/3 k/500`` of the learning rate. Here
    schedules count the steps that are done, ``k - 1``.

    Example:
        >>> from gw_jax.detection.recipes import reference_schedule
        >>> reference_schedule(60_000, 80_000).milestone_steps
        (59999, 79999)
    """
    return ScheduleConfig(
        name="step",
        gamma=0.1,
        milestone_steps=tuple(step - 1 for step in milestones),
        warmup_steps=_WARMUP_STEPS - 1,
        warmup_from=1 / 3 + 2 / 3 / _WARMUP_STEPS,
    )
