"""The typed configuration of a run, and the check that it is valid.

``configs/*.py`` make a :class:`TrainConfig`, the command line overrides single fields, :func:`validate` checks the whole
once, and nothing writes to it after that.
"""

import dataclasses
import difflib
import math
import re
from typing import Any

from gw_jax.errors import ConfigError
from gw_jax.models.create_model import MNIST_NETWORKS
from gw_jax.models.resnet import ARCHITECTURES, PLACEMENTS
from gw_jax.nn import NORM_NAMES, norm_options
from gw_jax.train.config_fields import check_types
from gw_jax.train.distributed import DistributedConfig

# Choices are strings checked by validate(): the flag parser does not know typing.Literal.
MODES = ("train", "evaluate", "export")
DTYPES = ("auto", "float32", "bfloat16", "float64")
OPTIMIZERS = ("sgd", "lars")
SCHEDULES = ("constant", "step", "cosine", "polynomial")
# The auto-encoder has no classes to learn.
CLASSIFIERS = tuple(name for name in MNIST_NETWORKS if name != "autoencoder")
STEMS = ("imagenet", "small")
CHECKPOINT_CHOICES = ("best", "last")


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    """What to train and evaluate on.

    Attributes:
        name: TFDS name of the set.
        eval_name: TFDS name of another set with the same classes to evaluate on, such as "imagenet_v2/matched-frequency" or
            "imagenet2012_real"; None for the evaluation split of ``name``.
        data_dir: where prepared sets are; None for the TFDS default.
        allow_partial: whether a known set may lack examples, such as a few classes for a trial.
        batch_size: images of a training step, over all devices.
        eval_batch_size: images of an evaluation step, over all devices.
        image_size: edge in pixels of the images that the network sees; None keeps them, where all are of one shape.
        crop: how they get that size. False resizes whole images. True trains on random crops and evaluates on the centre,
            as is usual for ImageNet.
        crop_scale: smallest and largest share of an image's area in a random crop.
        crop_ratio: smallest and largest width / height of a random crop.
        eval_resize: length of the shorter edge before the centre is cut out.
        shift: largest random shift of a training image in pixels, along both axes.
        flip: whether training images are mirrored at random.
        num_threads: threads that read and decode, in each worker if there are any.
        num_workers: processes that read and decode; 0 leaves it to threads of the run itself.
        max_broken: examples that may be unreadable (each is named and replaced); one more ends the run.
    """

    name: str = "mnist5k"
    eval_name: str | None = None
    data_dir: str | None = None
    allow_partial: bool = False
    batch_size: int = 64
    eval_batch_size: int = 200
    image_size: int | None = None
    crop: bool = False
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    eval_resize: int = 256
    shift: int = 0
    flip: bool = False
    num_threads: int = 2
    num_workers: int = 0
    max_broken: int = 10


@dataclasses.dataclass(slots=True, kw_only=True)
class AugmentConfig:
    """What else happens to training images, on the devices; zero turns each off.

    Attributes:
        mixup: alpha of mixup: pairs of images are blended with a weight from Beta(alpha, alpha).
        cutmix: alpha of CutMix: a box of one image is pasted into the other. With both, a step takes either at random.
        random_erasing: probability that a rectangle of an image is erased.
        randaugment_layers: random operations of RandAugment on each image; 2 is usual.
        randaugment_magnitude: their strength, 0 to 30; 9 is usual.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    random_erasing: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: int = 9


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
    implementation: str | None = None


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
    """The optimiser.

    "sgd" is PyTorch's: ``v <- momentum v + g + weight_decay p``, ``p <- p - learning_rate v``. "lars", for batches of many
    thousands (You et al. 2017), scales ``u = g + weight_decay p`` of each parameter by ``trust_coefficient ||p|| / ||u||``
    before the same momentum; parameters that ``no_decay`` names are not scaled.

    Attributes:
        name: "sgd" or "lars".
        learning_rate: peak learning rate.
        momentum: share of the velocity that is kept.
        nesterov: whether to use Nesterov's form of momentum.
        weight_decay: coefficient of the L2 term.
        no_decay: regular expressions; parameters whose path ("stage1/0/norm1/scale") one of them matches are not decayed.
            Empty, the reference's choice, decays all parameters. ``scale$,bias$`` spares norms and biases.
        trust_coefficient: of LARS.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    no_decay: tuple[str, ...] = ()
    trust_coefficient: float = 0.001


@dataclasses.dataclass(slots=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, in epochs.

    Attributes:
        name: "constant", "step" (times ``gamma`` every ``step_epochs``), "cosine" or "polynomial" (both to zero at the
            end).
        warmup_epochs: epochs of linear increase from zero; they count as epochs of the schedule.
        step_epochs: epochs between two steps.
        gamma: factor of a step.
        power: exponent of the polynomial ``(1 - progress)^power``.
    """

    name: str = "step"
    warmup_epochs: float = 0.0
    step_epochs: float = 30.0
    gamma: float = 0.1
    power: float = 2.0


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
        profile_step: the step before which ``jax.profiler`` starts to record, into ``WORKDIR/profile``; None for no
            profile. Choose one past the first, which compiles.
        profile_steps: steps that it records.
    """

    every_steps: int = 20
    tensorboard: bool = True
    progress_bar: bool = True
    plot: bool = True
    profile_step: int | None = None
    profile_steps: int = 5


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        mode: "train" (which goes on where the work directory's last checkpoint stands), "evaluate", or "export" (which
            writes the checkpoint as a directory for ``gw_jax.load_pretrained`` and ``python -m gw_jax.convert``).
        init_from: directory of a model that ``python -m gw_jax.convert`` wrote, whose parameters and statistics a new run
            starts from, or that "evaluate" evaluates.
        init_new_head: whether the last layer starts at random all the same, for a data set with other classes.
        resume_from: the same with the momentum and the number of epochs done, for a run that PyTorch began.
        seed: decides initial parameters, order of the data and augmentation.
        num_epochs: length of training.
        eval_every_epochs: epochs between evaluations; the last epoch is always evaluated.
        label_smoothing: share of a target that is spread over all classes.
        accumulate_steps: parts into which a batch is cut, one after the other, where it does not fit into memory; the
            gradient is that of the whole batch. BatchNorm sees one part at a time.
        ema_decay: decay of the exponential moving average of parameters and statistics that is evaluated and exported
            instead of the last ones; 0 for none. It starts faster: ``min(ema_decay, (1 + step) / (10 + step))``.
        dtype: type of the activations: "float32", "bfloat16" (parameters and statistics stay float32), or "float64",
            parameters too, which needs JAX_ENABLE_X64=1. "auto" is bfloat16 on accelerators and float32 on CPUs.
    """

    mode: str = "train"
    init_from: str | None = None
    init_new_head: bool = False
    resume_from: str | None = None
    seed: int = 0
    num_epochs: int = 90
    eval_every_epochs: int = 1
    label_smoothing: float = 0.0
    accumulate_steps: int = 1
    ema_decay: float = 0.0
    dtype: str = "auto"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)


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
        ("seed", config.seed, 0, 2**32 - 1),
        ("num_epochs", config.num_epochs, 1, None),
        ("label_smoothing", config.label_smoothing, 0, 0.999999),
        ("accumulate_steps", config.accumulate_steps, 1, None),
        ("ema_decay", config.ema_decay, 0, 0.999999999),
        ("eval_every_epochs", config.eval_every_epochs, 1, None),
        ("data.batch_size", config.data.batch_size, 1, None),
        ("data.eval_batch_size", config.data.eval_batch_size, 1, None),
        ("data.image_size", config.data.image_size, 1, None),
        ("data.shift", config.data.shift, 0, None),
        ("data.eval_resize", config.data.eval_resize, 1, None),
        ("data.num_threads", config.data.num_threads, 1, None),
        ("data.num_workers", config.data.num_workers, 0, None),
        ("data.max_broken", config.data.max_broken, 0, None),
        ("augment.mixup", config.augment.mixup, 0, None),
        ("augment.cutmix", config.augment.cutmix, 0, None),
        ("augment.random_erasing", config.augment.random_erasing, 0, 1),
        ("augment.randaugment_layers", config.augment.randaugment_layers, 0, None),
        ("augment.randaugment_magnitude", config.augment.randaugment_magnitude, 0, 30),
        ("model.width", config.model.width, 1, None),
        ("model.depth", config.model.depth, 1, None),
        ("model.dropout", config.model.dropout, 0, 0.999999),
        ("model.batch_norm_group_size", config.model.batch_norm_group_size, 1, None),
        ("optimizer.learning_rate", config.optimizer.learning_rate, 0, None),
        ("optimizer.momentum", config.optimizer.momentum, 0, 1),
        ("optimizer.weight_decay", config.optimizer.weight_decay, 0, None),
        ("optimizer.trust_coefficient", config.optimizer.trust_coefficient, 0, None),
        ("schedule.warmup_epochs", config.schedule.warmup_epochs, 0, config.num_epochs),
        ("schedule.step_epochs", config.schedule.step_epochs, 1e-6, None),
        ("schedule.gamma", config.schedule.gamma, 0, None),
        ("schedule.power", config.schedule.power, 0, None),
        ("checkpoint.every_steps", config.checkpoint.every_steps, 1, None),
        ("checkpoint.keep_last", config.checkpoint.keep_last, 1, None),
        ("checkpoint.keep_best", config.checkpoint.keep_best, 0, None),
        ("distributed.timeout_s", config.distributed.timeout_s, 1, 86400),
        ("log.every_steps", config.log.every_steps, 1, None),
        ("log.profile_step", config.log.profile_step, 0, None),
        ("log.profile_steps", config.log.profile_steps, 1, None),
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
    _check_crop(config.data)
    for pattern in config.optimizer.no_decay:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"config.optimizer.no_decay={pattern!r} is not a regular expression: {error}.") from error


def _check_crop(config: DataConfig) -> None:
    for field, pair, high in (("crop_scale", config.crop_scale, 1.0), ("crop_ratio", config.crop_ratio, math.inf)):
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= high:
            raise ConfigError(
                f"config.data.{field}={pair} must be two numbers, the smaller first, above 0"
                + (f" and at most {high:g}." if high < math.inf else ".")
            )
    if config.crop and config.image_size is None:
        raise ConfigError(
            "config.data.crop=True needs config.data.image_size, the edge of a crop in pixels (224 for ImageNet)."
        )
    if config.crop and config.image_size is not None and config.eval_resize < config.image_size:
        raise ConfigError(
            f"config.data.eval_resize={config.eval_resize} is smaller than config.data.image_size={config.image_size}, "
            "which "
            f"is cut out of it; give at least {config.image_size}."
        )


def chosen_norm_options(config: ModelConfig) -> dict[str, Any]:
    """The options set in ``config.norm_options`` that the chosen norm has."""
    known = norm_options(config.norm)
    options = dataclasses.asdict(config.norm_options)
    return {name: value for name, value in options.items() if value is not None and name in known}
