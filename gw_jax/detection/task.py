"""The task of object detection: network, losses, warm start and export, on data that the caller gives."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import nnx

from gw_jax.config_checks import check_split
from gw_jax.detection.coco_metrics import require_pycocotools
from gw_jax.detection.data.scenes import Scenes
from gw_jax.detection.description import entries
from gw_jax.detection.detector import Detector, create_detector
from gw_jax.detection.draw_result import draw_result
from gw_jax.detection.finite import detect_finite
from gw_jax.detection.inputs import aligned
from gw_jax.detection.losses import detector_losses
from gw_jax.detection.pixels import PIXELS, normalize
from gw_jax.detection.saved import save_detector
from gw_jax.detection.weights import read_weights
from gw_jax.errors import ConfigError
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.train.state import activation_dtype, model_to_dicts
from gw_jax.train.task import Batch, Curve, EvalBatches, Evaluator, Mean, TrainBatches, Weights

if TYPE_CHECKING:
    from gw_jax.detection.config import DetectionConfig

LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "loss_mask")


class DetectionData(Protocol):
    """Images with objects, for training and evaluation.

    A batch is a dict of arrays: ``image`` uint8 RGB ``[n, h, w, 3]`` on a canvas, ``size`` int32 ``[n, 2]`` with the
    heights and widths of the images, and the arrays of :func:`gw_jax.detection.pad_targets`. An evaluation batch needs the
    first two, and whatever :meth:`evaluator` needs.

    Attributes:
        steps_per_epoch: training batches of an epoch.
        name: of the data, for plots.
        eval_name: name of the evaluation data where it is not the data's own split, or None.
    """

    steps_per_epoch: int
    name: str
    eval_name: str | None

    @property
    def scenes(self) -> Scenes | None:
        """The prepared set, whose categories an exported detector knows, and of which ``detections.png`` shows images.

        None for other data.
        """
        ...

    def train_batches(self, num_epochs: int, process_index: int, process_count: int) -> TrainBatches:
        """This process's shard of the training batches."""
        ...

    def eval_batches(self, process_index: int, process_count: int) -> EvalBatches:
        """This process's shard of the evaluation batches."""
        ...

    def evaluator(self, workdir: pathlib.Path | None = None, step: int = 0) -> Evaluator:
        """A new evaluator, such as a :class:`gw_jax.detection.coco_evaluator.CocoEvaluator`.

        It gets ``{"detections": Detections, "batch": the evaluation batch without images, "finite": bool [n]}``, which stay
        sharded over the devices; see :class:`gw_jax.train.task.EvaluatesShards`.

        Args:
            workdir: where it may write files, or None.
            step: training steps of the weights.
        """
        ...


class DetectionTask:
    """Trains a detector; see :class:`gw_jax.train.Task`.

    Args:
        config: the run.
        data: images with objects.

    Attributes:
        model_arguments: arguments of :func:`gw_jax.detection.create_detector`.

    Example:
        >>> from types import SimpleNamespace
        >>> from flax import nnx
        >>> from gw_jax.detection.config import DetectionConfig, DetectorConfig
        >>> from gw_jax.detection.task import DetectionTask
        >>> small = DetectorConfig(backbone="resnet18", norm="gn", width=32, fpn_features=32, head_features=32)
        >>> data = SimpleNamespace(steps_per_epoch=25, name="scenes", eval_name=None)  # and the methods of DetectionData
        >>> task = DetectionTask(DetectionConfig(batch_size=4, model=small), data)
        >>> task.description, task.steps_per_epoch
        ('Faster R-CNN, resnet18, gn, on scenes', 25)
    """

    best_metric = "eval/box_ap"
    example_name = "images"

    def __init__(self, config: "DetectionConfig", data: DetectionData):
        self.config = config
        self.data = data
        self.batch_size = config.batch_size
        self.steps_per_epoch = data.steps_per_epoch
        self.eval_name = data.eval_name
        self.model_arguments = config.model_arguments()
        network = "Mask R-CNN" if config.model.mask_head else "Faster R-CNN"
        self.description = f"{network}, {config.model.backbone}, {config.model.norm}, on {data.name}"
        names = LOSSES if config.model.mask_head else LOSSES[:-1]
        self.curves: Sequence[Curve] = (
            Curve("losses", ("train/loss", *(f"train/{name}" for name in names)), log_scale=True),
            Curve("average precision", (self.best_metric,), best="max"),
        )
        self.terminal_metrics: Mapping[str, str] = {"loss": "train/loss", "box_ap": self.best_metric}

    def check(self, num_devices: int, *, training: bool) -> None:
        """Checks devices, data and configuration against each other.

        Raises:
            ConfigError: what does not fit; the message says what to change.
        """
        if training:
            check_split("config.batch_size", self.batch_size, num_devices, self.config.accumulate_steps)
        check_split("config.eval_batch_size", self.config.eval_batch_size, num_devices)
        if self.data.scenes is not None:
            require_pycocotools()
        if training and not self.steps_per_epoch:
            raise ConfigError(
                f"config.batch_size={self.batch_size} is more than the data have for a batch; choose a smaller one."
            )

    def make_model(self, rngs: nnx.Rngs) -> Detector:
        """The network.

        Raises:
            ValueError: options that do not fit each other, such as channels that the groups do not divide.
        """
        param_dtype = jnp.float64 if self.config.dtype == "float64" else jnp.float32
        return create_detector(**self.model_arguments, dtype=jnp.dtype(self._dtype), param_dtype=param_dtype, rngs=rngs)

    def train_batches(self, num_epochs: int, process_index: int, process_count: int) -> TrainBatches:
        """This process's shard of the training batches."""
        return self.data.train_batches(num_epochs, process_index, process_count)

    def eval_batches(self, process_index: int, process_count: int) -> EvalBatches:
        """This process's shard of the evaluation batches."""
        return self.data.eval_batches(process_index, process_count)

    def loss(self, model: nnx.Module, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """The sum of the losses of :func:`gw_jax.detection.detector_losses`, and each of them."""
        images, valid, sizes = self._inputs(batch)
        config = self.config
        losses = detector_losses(
            cast(Detector, model), images, valid, sizes, batch, key, sampling=config.sampling, remat=config.remat
        )
        total = sum(losses.values(), start=jnp.zeros((), losses["loss_classifier"].dtype))
        return total, {name: (value, jnp.ones((), value.dtype)) for name, value in losses.items()}

    def predict(self, model: nnx.Module, batch: Batch) -> dict[str, Any]:
        """The detections in network-input pixels, whether the features are finite, and the batch without its images."""
        detections, finite = detect_finite(cast(Detector, model), *self._inputs(batch))
        others = {name: value for name, value in batch.items() if name != "image"}
        return {"detections": detections, "batch": others, "finite": finite}

    def evaluator(self) -> Evaluator:
        """That of the data, without files."""
        return self.data.evaluator()

    def shard_evaluator(self, step: int, workdir: pathlib.Path) -> Evaluator:
        """That of the data."""
        return self.data.evaluator(workdir, step)

    def read_weights(self, directory: pathlib.Path) -> Weights:
        """Reads a detector, or a classifier for the backbone.

        Raises:
            CheckpointError: the directory is damaged.
            ConfigError: it holds another network than ``config.model`` describes.
        """
        return read_weights(directory, self.config)

    def export(self, directory: pathlib.Path, params: Any, batch_stats: Any, source: dict[str, Any]) -> None:
        """Writes a directory for :func:`gw_jax.detection.load_detector`.

        Raises:
            CheckpointError: ``directory`` exists.
        """
        graphdef, _, _ = model_to_dicts(self.make_model(AbstractRngs()))
        detector: Detector = nnx.merge(graphdef, params, batch_stats)
        content = {**source, "pixels": PIXELS[self.config.pixels].to_json()}
        if self.data.scenes is not None:
            content |= entries(self.data.scenes.categories, self.config.data.min_side, self.config.data.max_side)
        save_detector(directory, detector, source=content)

    def draw(self, workdir: pathlib.Path) -> pathlib.Path | None:
        """``detections.png``: ground truth beside detections, for a few images of the evaluation."""
        return None if self.data.scenes is None else draw_result(self.data.scenes, workdir)

    @property
    def _dtype(self) -> str:
        return activation_dtype(self.config.dtype)

    def _inputs(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        sizes = batch["size"]
        images = normalize(batch["image"], sizes, pixels=self.config.pixels, dtype=self._dtype)
        return images, aligned(sizes), sizes
