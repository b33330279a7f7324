"""The typed configuration of a run, whatever its task, and the check that it is valid.

``configs/*.py`` make a subclass of :class:`TrainConfig`, the command line overrides single fields, :func:`validate` checks
the whole once, and nothing writes to it after that. What configures a task stands beside the task.
"""

import dataclasses
from typing import ClassVar, Self

from gw_jax.config_checks import check_values, choice, number
from gw_jax.errors import ConfigError
from gw_jax.train.config_fields import check_types
from gw_jax.train.distributed import DistributedConfig
from gw_jax.train.optimizer_config import OptimizerConfig, ScheduleConfig
from gw_jax.train.task import Task

MODES = ("train", "evaluate", "export")
DTYPES = ("auto", "float32", "bfloat16", "float64")
CHECKPOINT_CHOICES = ("best", "last")


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints: when they are saved, which are kept, which is evaluated. Every evaluation saves one, too.

    Attributes:
        every_steps: steps between saves; None for none.
        every_epochs: epochs between saves; None for none.
        keep_last: how many of the newest checkpoints are kept.
        keep_best: how many of those with the best evaluation are kept.
        evaluate: the checkpoint of ``mode=evaluate`` and ``mode=export``, "best" or "last".

    Example:
        >>> from gw_jax.train import CheckpointConfig
        >>> CheckpointConfig(every_steps=1000).keep_last
        2
    """

    every_steps: int | None = number(None, 1)
    every_epochs: int | None = number(None, 1)
    keep_last: int = number(2, 1)
    keep_best: int = number(1, 0)
    evaluate: str = choice("best", CHECKPOINT_CHOICES)


@dataclasses.dataclass(slots=True, kw_only=True)
class LogConfig:
    """Metrics, progress, plots and profile of a run.

    Attributes:
        every_steps: steps between two training lines of ``metrics.jsonl``; the end of an epoch writes one, too.
        tensorboard: whether TensorBoard files are written.
        progress_bar: whether a terminal shows a progress bar.
        plot: whether ``curves.png``, and what else the task draws, is drawn at the end.
        profile_step: the step before which ``jax.profiler`` starts to record, into ``WORKDIR/profile``; None for no
            profile. Choose one past the first, which compiles.
        profile_steps: steps that it records.

    Example:
        >>> from gw_jax.train import LogConfig
        >>> LogConfig(tensorboard=False).every_steps
        20
    """

    every_steps: int = number(20, 1)
    tensorboard: bool = True
    progress_bar: bool = True
    plot: bool = True
    profile_step: int | None = number(None, 0)
    profile_steps: int = number(5, 1)


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
    """A run of any task; a subclass adds the fields of its task and :meth:`make_task`.

    Attributes:
        mode: "train" (which resumes from the newest checkpoint of the work directory), "evaluate", or "export" (which
            writes the checkpoint as a directory for ``gw_jax.load_pretrained`` and ``python -m gw_jax.convert``).
        init_from: directory of a model that ``python -m gw_jax.convert`` wrote, from whose parameters and statistics a new
            run starts, or which "evaluate" evaluates.
        resume_from: the same with the momentum and the number of epochs done, for a run that PyTorch began.
        seed: determines initial parameters, order of the data and augmentation.
        num_epochs: length of the run in epochs.
        num_steps: length of the run in steps; None for ``num_epochs``.
        eval_every_epochs: epochs between evaluations; the end of the run is always evaluated.
        eval_every_steps: steps between evaluations; None for ``eval_every_epochs``.
        accumulate_steps: microbatches into which a batch is cut where it does not fit into memory; the gradient is that of
            the whole batch. Batch statistics are those of a microbatch.
        ema_decay: decay of the exponential moving average of parameters and statistics that is evaluated and exported
            instead of the last ones; 0 for none. It starts faster: ``min(ema_decay, (1 + step) / (10 + step))``.
        check_kernels: whether kernels of Group Whitening are checked against the definition on every host before the first
            step, where the devices have some; answers are kept in ``$GW_JAX_CACHE_DIR``, by default ``~/.cache/gw_jax``.
            False: no check, and no kernels but those that were right in an earlier one.
        dtype: type of the activations: "float32", "bfloat16" (parameters and statistics stay float32), or "float64",
            parameters too, which needs JAX_ENABLE_X64=1. "auto" is bfloat16 on TPUs and on GPUs of compute capability 8.0
            and above, else float32.

    Example:
        >>> from gw_jax.train import TrainConfig
        >>> TrainConfig(num_epochs=10).optimizer.learning_rate
        0.1
    """

    # Names of fields, or of groups with a dot at their end. These may change between the starts of one run, because they
    # change no result; and these may also differ from the run's when it is evaluated.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("mode", "check_kernels", "checkpoint.", "distributed.", "log.")
    MAY_DIFFER_IN_EVALUATION: ClassVar[tuple[str, ...]] = ("dtype",)

    mode: str = choice("train", MODES)
    init_from: str | None = None
    resume_from: str | None = None
    seed: int = number(0, 0, 2**32 - 1)
    num_epochs: int = number(90, 1)
    num_steps: int | None = number(None, 1)
    eval_every_epochs: int = number(1, 1)
    eval_every_steps: int | None = number(None, 1)
    accumulate_steps: int = number(1, 1)
    ema_decay: float = number(0.0, 0, 0.999999999)
    check_kernels: bool = True
    dtype: str = choice("auto", DTYPES)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def make_task(self) -> Task:
        """Opens what the task needs, such as its data. The only dispatch on the kind of task.

        Raises:
            UserError: the data are missing, or do not fit the configuration.
            ConfigError: this class has no task.
        """
        raise ConfigError(
            f"A {type(self).__name__} has no task. Use the configuration of one, such as "
            "gw_jax.classification.ClassificationConfig, or a subclass with a make_task of its own."
        )

    def resolve(self) -> tuple[Self, str]:
        """The configuration that runs, where fields ask for others to be computed, and one line on what was; else "".

        The result is what ``config.json`` holds. It resolves to itself.

        Raises:
            ConfigError: what is asked for cannot be computed.
        """
        return self, ""

    def advice_on_divergence(self) -> str:
        """One sentence on what to change where a loss is not finite, beside the learning rate; "" for none."""
        return ""

    def check(self) -> None:
        """Checks fields against each other. A subclass calls this one, too.

        Raises:
            ConfigError: fields that exclude each other; the message says what to change.
        """
        if self.init_from is not None and self.resume_from is not None:
            raise ConfigError(
                "config.init_from and config.resume_from are both set. The first reads the weights only, the second "
                "momentum and epoch, too; set one."
            )
        if self.schedule.warmup_steps is None and self.num_steps is None and self.schedule.warmup_epochs > self.num_epochs:
            raise ConfigError(
                f"config.schedule.warmup_epochs={self.schedule.warmup_epochs} is out of range; "
                f"0 to {self.num_epochs} is allowed."
            )
        self.optimizer.check()
        self.schedule.check()


def validate(config: TrainConfig) -> None:
    """Checks everything that can be checked without data or devices.

    Raises:
        ConfigError: the first field that is not valid: its value, what is allowed.
    """
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"get_config() returned a {type(config).__name__}; it must return a gw_jax.train.TrainConfig.")
    check_types(config, "config")
    check_values(config)
    config.check()
