"""The typed configuration of a run, and the check that it is valid.

``configs/*.py`` make a :class:`TrainConfig`, the command line overrides single fields, :func:`validate` checks the whole
once, and nothing writes to it after that.
"""

import dataclasses
import difflib
import re
from typing import Any

from gw_jax.errors import ConfigError
from gw_jax.models.create_model import MNIST_NETWORKS
from gw_jax.models.resnet import ARCHITECTURES, PLACEMENTS
from gw_jax.nn import NORM_NAMES, norm_options
from gw_jax.train.fields import check_types

# Choices are strings checked by validate(): the flag parser does not know typing.Literal.
MODES = ("train", "evaluate", "export")
DTYPES = ("float32", "bfloat16", "float64")
OPTIMIZERS = ("sgd",)
SCHEDULES = ("constant", "step", "cosine")
# The auto-encoder has no classes to learn.
CLASSIFIERS = tuple(name for name in MNIST_NETWORKS if name != "autoencoder")
STEMS = ("imagenet", "small")
CHECKPOINT_CHOICES = ("best", "last")


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    """What to train and evaluate on.

    Attributes:
        name: TFDS name of the set.
        data_dir: where prepared sets are; None for the TFDS default.
        batch_size: images of a training step, over all devices.
        eval_batch_size: images of an evaluation step, over all devices.
        image_size: edge in pixels to which images are resized on the host; None keeps them, where all are of one shape.
        shift: largest random shift of a training image in pixels, along both axes.
        flip: whether training images are mirrored at random.
        num_threads: threads that read and decode.
    """

    name: str = "mnist5k"
    data_dir: str | None = None
    batch_size: int = 64
    eval_batch_size: int = 200
    image_size: int | None = None
    shift: int = 0
    flip: bool = False
    num_threads: int = 2


@dataclasses.dataclass(slots=True, kw_only=True)
class NormConfig:
    """Options of the norm; None leaves the layer's default. Those that the chosen norm does not have are left out."""

    num_groups: int | None = None
    channels_per_group: int | None = None
    num_iterations: int | None = None
    epsilon: float | None = None
    momentum: float | None = None
    group_size: int | None = None
    use_scale: bool | None = None
    use_bias: bool | None = None


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The network; see :func:`gw_jax.create_model`. Fields that a network does not have are left out.

    Attributes:
        name: network name: a ResNet, mlp, mlp_norm_linear or lenet.
        norm: the norm that ``whiten`` places.
        norm_options: its options.
        whiten: where it stands.
        batch_norm_group_size: examples that share statistics in the BatchNorms elsewhere; None for the whole batch.
        stem: "imagenet" or "small".
        width: channels of the stem (64), or of the hidden layers of an MLP (100).
        depth: hidden layers of an MLP (4).
        last_norm: whether the norm also stands before the last layer.
        apply_last_norm: False keeps its parameters without using it, as in the reference's ResNeXt.
        dropout: probability of dropping a value before the last layer.
        replace_stride_with_dilation: whether the stages 2, 3 and 4 dilate instead of halving the resolution.
        zero_init_residual: whether blocks start as their shortcuts.
    """

    name: str = "resnet50"
    norm: str = "gw"
    norm_options: NormConfig = dataclasses.field(default_factory=NormConfig)
    whiten: str = "S1-B2"
    batch_norm_group_size: int | None = None
    stem: str = "imagenet"
    width: int | None = None
    depth: int | None = None
    last_norm: bool = False
    apply_last_norm: bool = True
    dropout: float = 0.0
    replace_stride_with_dilation: tuple[bool, ...] = (False, False, False)
    zero_init_residual: bool = False


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimizerConfig:
    """The optimiser: ``v <- momentum v + g + weight_decay p``, ``p <- p - learning_rate v``, as in PyTorch.

    Attributes:
        name: "sgd".
        learning_rate: peak learning rate.
        momentum: share of the velocity that is kept.
        nesterov: whether to use Nesterov's form of momentum.
        weight_decay: coefficient of the L2 term.
        no_decay: regular expressions; parameters whose path ("stage1/0/norm1/scale") one of them matches are not decayed.
            Empty, the reference's choice, decays all parameters. ``scale$,bias$`` spares norms and biases.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    no_decay: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, in epochs.

    Attributes:
        name: "constant", "step" (times ``gamma`` every ``step_epochs``) or "cosine" (to zero at the end).
        warmup_epochs: epochs of linear increase from zero; they count as epochs of the schedule.
        step_epochs: epochs between two steps.
        gamma: factor of a step.
    """

    name: str = "step"
    warmup_epochs: float = 0.0
    step_epochs: float = 30.0
    gamma: float = 0.1


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
        every_steps: steps between saves, beside those at the end of every evaluated epoch; None for none.
        keep_last: how many of the newest checkpoints are kept.
        keep_best: how many of those with the highest top-1 are kept.
        evaluate: which checkpoint ``mode=evaluate`` takes, "best" or "last".
    """

    every_steps: int | None = None
    keep_last: int = 2
    keep_best: int = 1
    evaluate: str = "best"


@dataclasses.dataclass(slots=True, kw_only=True)
class LogConfig:
    """What to report.

    Attributes:
        every_steps: steps between two training lines of ``metrics.jsonl``; the end of an epoch writes one, too.
        tensorboard: whether TensorBoard files are written.
        progress_bar: whether a terminal shows a progress bar.
        plot: whether ``curves.png`` is drawn at the end.
    """

    every_steps: int = 20
    tensorboard: bool = True
    progress_bar: bool = True
    plot: bool = True


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        mode: "train" (which goes on where the work directory's last checkpoint stands), "evaluate", or "export" (which
            writes the checkpoint as a directory for ``gw_jax.load_pretrained`` and ``python -m gw_jax.convert``).
        init_from: directory of a model that ``python -m gw_jax.convert`` wrote, whose parameters and statistics a new run
            starts from, or that "evaluate" evaluates.
        resume_from: the same with the momentum and the number of epochs done, for a run that PyTorch began.
        seed: decides initial parameters, order of the data and augmentation.
        num_epochs: length of training.
        eval_every_epochs: epochs between evaluations; the last epoch is always evaluated.
        dtype: type of the activations: "float32", "bfloat16" (parameters and statistics stay float32), or "float64",
            parameters too, which needs JAX_ENABLE_X64=1.
    """

    mode: str = "train"
    init_from: str | None = None
    resume_from: str | None = None
    seed: int = 0
    num_epochs: int = 90
    eval_every_epochs: int = 1
    dtype: str = "float32"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)


def validate(config: TrainConfig) -> None:
    """Checks everything that can be checked without data or devices.

    Raises:
        ConfigError: the first field that is not valid: its value, what is allowed.
    """
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"get_config() returned a {type(config).__name__}; it must return a gw_jax.train.TrainConfig.")
    check_types(config, "config")
    for field, value, allowed in (
        ("mode", config.mode, MODES),
        ("dtype", config.dtype, DTYPES),
        ("model.name", config.model.name, (*ARCHITECTURES, *CLASSIFIERS)),
        ("model.norm", config.model.norm, NORM_NAMES),
        ("model.whiten", config.model.whiten, tuple(PLACEMENTS)),
        ("model.stem", config.model.stem, STEMS),
        ("optimizer.name", config.optimizer.name, OPTIMIZERS),
        ("schedule.name", config.schedule.name, SCHEDULES),
        ("checkpoint.evaluate", config.checkpoint.evaluate, CHECKPOINT_CHOICES),
    ):
        if value not in allowed:
            close = difflib.get_close_matches(value, allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"config.{field}={value!r} is not known; choose one of {', '.join(allowed)}.{hint}")
    for field, number, low, high in (
        ("num_epochs", config.num_epochs, 1, None),
        ("eval_every_epochs", config.eval_every_epochs, 1, None),
        ("data.batch_size", config.data.batch_size, 1, None),
        ("data.eval_batch_size", config.data.eval_batch_size, 1, None),
        ("data.image_size", config.data.image_size, 1, None),
        ("data.shift", config.data.shift, 0, None),
        ("data.num_threads", config.data.num_threads, 1, None),
        ("model.width", config.model.width, 1, None),
        ("model.depth", config.model.depth, 1, None),
        ("model.dropout", config.model.dropout, 0, 0.999999),
        ("model.batch_norm_group_size", config.model.batch_norm_group_size, 1, None),
        ("optimizer.learning_rate", config.optimizer.learning_rate, 0, None),
        ("optimizer.momentum", config.optimizer.momentum, 0, 1),
        ("optimizer.weight_decay", config.optimizer.weight_decay, 0, None),
        ("schedule.warmup_epochs", config.schedule.warmup_epochs, 0, config.num_epochs),
        ("schedule.step_epochs", config.schedule.step_epochs, 1e-6, None),
        ("schedule.gamma", config.schedule.gamma, 0, None),
        ("checkpoint.every_steps", config.checkpoint.every_steps, 1, None),
        ("checkpoint.keep_last", config.checkpoint.keep_last, 1, None),
        ("checkpoint.keep_best", config.checkpoint.keep_best, 0, None),
        ("log.every_steps", config.log.every_steps, 1, None),
    ):
        if number is None or (number >= low and (high is None or number <= high)):
            continue
        bounds = f">= {low}" if high is None else f"{low} to {high}"
        raise ConfigError(f"config.{field}={number} is out of range; {bounds} is allowed.")
    if config.init_from is not None and config.resume_from is not None:
        raise ConfigError(
            "config.init_from and config.resume_from are both set. The first takes the weights only, the second momentum "
            "and epoch, too; set one."
        )
    for pattern in config.optimizer.no_decay:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"config.optimizer.no_decay={pattern!r} is not a regular expression: {error}.") from error


def chosen_norm_options(config: ModelConfig) -> dict[str, Any]:
    """The options set in ``config.norm_options`` that the chosen norm has."""
    known = norm_options(config.norm)
    options = dataclasses.asdict(config.norm_options)
    return {name: value for name, value in options.items() if value is not None and name in known}
