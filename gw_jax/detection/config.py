"""The configuration of a detector's training."""

import dataclasses
from typing import Any, ClassVar, Self, get_args

from gw_jax.config_checks import choice, number
from gw_jax.detection.data.config import SceneConfig
from gw_jax.detection.detector_options import NUM_STAGES, DetectorNorm
from gw_jax.detection.heads import BoxHeadName, ConvReLU
from gw_jax.detection.inputs import CANVASES, check_canvas
from gw_jax.detection.layers import HeadNorm
from gw_jax.detection.options import Sampling
from gw_jax.detection.pixels import PIXELS
from gw_jax.detection.scene_data import SceneData
from gw_jax.detection.task import DetectionTask
from gw_jax.errors import ConfigError
from gw_jax.models.config import NormConfig
from gw_jax.models.resnet import ARCHITECTURES
from gw_jax.nn import norm_options
from gw_jax.train.batch_scaling import scale_to_batch
from gw_jax.train.config import TrainConfig


@dataclasses.dataclass(slots=True, kw_only=True)
class DetectorConfig:
    """The network; see :func:`gw_jax.detection.create_detector`.

    Attributes:
        backbone: a residual network.
        norm: norm of the backbone: "gw" (Group Whitening in the stem and after every 3x3 convolution, frozen BatchNorm
            elsewhere), "gn", "bn" (over the batch of all devices) or "frozen_bn" (everywhere).
        norm_options: its options, and those of the same norm elsewhere in the network.
        fpn_norm: norm after the convolutions of the feature pyramid.
        box_head: "2fc" or "4conv1fc".
        box_head_norm: norm after the four convolutions.
        mask_head: whether there is one: Mask R-CNN, else Faster R-CNN.
        mask_head_norm: norm after its convolutions.
        conv_relu: "last" has one ReLU after the four convolutions of the box head, as the published code; "each" one
            after each.
        frozen_bn_epsilon: added to the variances of all frozen BatchNorms; the reference has none. Weights with channels
            of variance near 0 need that of their training, 1e-5.
        width: channels of the backbone's stem.
        fpn_features: channels of the pyramid.
        head_features: outputs of the box head's linear layers.
        frozen_stages: stages of the backbone that get no gradient, with the stem. The optimiser's ``frozen`` must name
            their parameters, too, or they decay.

    Example:
        >>> from gw_jax.detection.config import DetectorConfig
        >>> DetectorConfig(box_head="4conv1fc", box_head_norm="gw", fpn_norm="gn").norm
        'gw'
    """

    backbone: str = choice("resnet50", ARCHITECTURES)
    norm: str = choice("gw", get_args(DetectorNorm))
    norm_options: NormConfig = dataclasses.field(default_factory=NormConfig)
    fpn_norm: str = choice("none", get_args(HeadNorm))
    box_head: str = choice("2fc", get_args(BoxHeadName))
    box_head_norm: str = choice("none", get_args(HeadNorm))
    mask_head: bool = False
    mask_head_norm: str = choice("none", get_args(HeadNorm))
    conv_relu: str = choice("last", get_args(ConvReLU))
    frozen_bn_epsilon: float = number(0.0, 0)
    width: int = number(64, 1)
    fpn_features: int = number(256, 1)
    head_features: int = number(1024, 1)
    frozen_stages: int = number(1, 0, NUM_STAGES)


@dataclasses.dataclass(slots=True, kw_only=True)
class DetectionConfig(TrainConfig):
    """A run that trains or evaluates a detector; see :class:`TrainConfig` for the fields of every run.

    Attributes:
        num_classes: with the background: 81 for COCO.
        init_new_predictors: whether the layers whose size is the number of classes start at random although ``init_from``
            names a detector: for other classes.
        batch_size: images per training step, over all devices.
        eval_batch_size: images per evaluation step, over all devices.
        reference_batch_size: the batch size for which learning rate, number of steps and schedule are meant; None where
            nobody says.
        scale_to_batch: whether they are scaled from there to ``batch_size`` when the run starts: the learning rate in
            proportion to the batch, steps inversely. ``config.json`` then holds the scaled ones, with
            ``reference_batch_size = batch_size``.
        canvases: sizes "HEIGHTxWIDTH" to which the data pad images, multiples of 32. Each is compiled once.
        pixels: order and scale of pixel values: "rgb", for weights of PyTorch, or "bgr", for weights of Caffe2.
        max_objects: objects of an image to which the data pad ground truth; see :func:`pad_targets`.
        max_edges: edges of an object's polygons to which the data pad ground truth, for a mask head.
        sampling: how many anchors, proposals and regions of interest the losses are taken over.
        remat: whether the gradient recomputes the blocks of the backbone, and the pyramid, instead of keeping what is
            inside them: less memory, more work, the same result.
        data: the prepared set, and how its images are resized and read.
        model: the network.

    Example:
        >>> from gw_jax.detection.config import DetectionConfig, DetectorConfig
        >>> DetectionConfig(num_steps=90_000, model=DetectorConfig(norm="gn")).check()
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *TrainConfig.MAY_CHANGE,
        "data.data_dir",
        "data.num_threads",
        "data.num_workers",
        "data.max_broken",
    )
    MAY_DIFFER_IN_EVALUATION: ClassVar[tuple[str, ...]] = (
        *TrainConfig.MAY_DIFFER_IN_EVALUATION,
        "eval_batch_size",
        "canvases",
        "max_objects",
        "max_edges",
        "data.name",
        "data.min_side",
        "data.max_side",
    )

    num_classes: int = number(81, 2)
    init_new_predictors: bool = False
    batch_size: int = number(16, 1)
    eval_batch_size: int = number(16, 1)
    reference_batch_size: int | None = number(None, 1)
    scale_to_batch: bool = False
    canvases: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in CANVASES)
    pixels: str = choice("rgb", PIXELS)
    max_objects: int = number(100, 1)
    max_edges: int = number(512, 3)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    remat: bool = False
    data: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    model: DetectorConfig = dataclasses.field(default_factory=DetectorConfig)

    def make_task(self) -> DetectionTask:
        """Opens the prepared set. A subclass with other data returns ``DetectionTask(self, data)``.

        Raises:
            ConfigError: the configuration does not fit the set.
            DataError: the set is not prepared, or damaged.
        """
        return DetectionTask(self, SceneData(self))

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of :func:`gw_jax.detection.create_detector`, without types and generators; JSON values."""
        known = norm_options(self.model.norm)
        options = dataclasses.asdict(self.model.norm_options)
        chosen = {name: value for name, value in options.items() if value is not None and name in known}
        arguments = {field.name: getattr(self.model, field.name) for field in dataclasses.fields(self.model)}
        return {**arguments, "norm_options": chosen or None, "num_classes": self.num_classes}

    def canvas_sizes(self) -> tuple[tuple[int, int], ...]:
        """The canvases as (height, width).

        Raises:
            ConfigError: one is not "HEIGHTxWIDTH" with multiples of 32, or there is none.
        """
        sizes = []
        for canvas in self.canvases:
            height, _, width = canvas.partition("x")
            try:
                sizes.append(check_canvas((int(height), int(width))))
            except ValueError as error:
                raise ConfigError(
                    f"config.canvases has {canvas!r}; HEIGHTxWIDTH is needed, both multiples of 32, such as 800x1344."
                ) from error
        if not sizes:
            raise ConfigError("config.canvases is empty; give at least one, such as 800x1344.")
        return tuple(sizes)

    def resolve(self) -> tuple[Self, str]:
        """The configuration that runs: with ``scale_to_batch``, its learning rate and steps are those of the batch.

        Raises:
            ConfigError: they cannot be scaled.
        """
        if not self.scale_to_batch or self.reference_batch_size is None:
            return self, ""
        if self.reference_batch_size == self.batch_size:
            return (
                self,
                f"config.scale_to_batch=True changes nothing: the configuration is for batches of {self.batch_size}.",
            )
        scaled = scale_to_batch(self, self.reference_batch_size, self.batch_size)
        resolved = dataclasses.replace(
            self,
            reference_batch_size=self.batch_size,
            num_steps=scaled.num_steps,
            eval_every_steps=scaled.eval_every_steps,
            optimizer=scaled.optimizer,
            schedule=scaled.schedule,
        )
        return resolved, scaled.summary

    def advice_on_divergence(self) -> str:
        """Names ``scale_to_batch`` where the learning rate is that of a larger batch."""
        reference = self.reference_batch_size
        if reference is None or reference <= self.batch_size:
            return ""
        return (
            f"The learning rate is meant for batches of {reference}, and config.batch_size={self.batch_size}: "
            "config.scale_to_batch=True scales it, and the number of steps."
        )

    def check(self) -> None:
        """Checks fields against each other.

        Raises:
            ConfigError: fields that exclude each other; the message says what to change.
        """
        TrainConfig.check(self)
        self.data.check()
        self.canvas_sizes()
        if self.scale_to_batch and self.reference_batch_size is None:
            raise ConfigError(
                "config.scale_to_batch=True needs to know for which batch the learning rate is meant; set "
                "config.reference_batch_size, or leave config.scale_to_batch out."
            )
        if self.init_new_predictors and self.init_from is None:
            raise ConfigError(
                "config.init_new_predictors=True keeps the predictors random when config.init_from is read, and "
                "config.init_from is not set. Set it, or leave init_new_predictors out."
            )
        part = self.batch_size // self.accumulate_steps
        if part % self.sampling.pool_images:
            raise ConfigError(
                f"config.sampling.pool_images={self.sampling.pool_images} does not divide the {part} images of a "
                "(micro)batch; choose a divisor, or 1 for the best proposals of each image."
            )
        if self.model.box_head == "2fc" and self.model.box_head_norm != "none":
            raise ConfigError(
                f"config.model.box_head_norm={self.model.box_head_norm!r} has no effect on config.model.box_head='2fc', "
                "which has no convolutions; choose 'none', or box_head='4conv1fc'."
            )
        if self.model.norm == "bn" and self.model.frozen_stages:
            raise ConfigError(
                f"config.model.norm='bn' with config.model.frozen_stages={self.model.frozen_stages}: batch norms of frozen "
                "stages would still follow the statistics of the batches. Set config.model.frozen_stages=0, or "
                "config.model.norm='frozen_bn'."
            )
        if self.model.norm == "bn" and self.remat:
            raise ConfigError(
                "config.remat=True recomputes the backbone, which would count the running statistics of "
                "config.model.norm='bn' twice. Choose another norm, or leave config.remat out."
            )
        if not self.model.mask_head and self.model.mask_head_norm != "none":
            raise ConfigError(
                f"config.model.mask_head_norm={self.model.mask_head_norm!r} has no effect without "
                "config.model.mask_head=True."
            )
