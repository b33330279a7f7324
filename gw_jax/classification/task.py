"""The task of image classification: network, loss, data, evaluation, warm start and export."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gw_jax.augment.check import check_augment
from gw_jax.classification.checks import check_batch_size, check_devices, check_images
from gw_jax.classification.evaluator import TopKEvaluator, batch_sums
from gw_jax.classification.inputs import evaluation_inputs, training_inputs
from gw_jax.classification.weights import read_weights
from gw_jax.data.datasets import Dataset, open_dataset
from gw_jax.data.pipeline import EvalBatches, TrainBatches
from gw_jax.errors import ConfigError
from gw_jax.models import create_model
from gw_jax.models.config import model_arguments
from gw_jax.models.create_model import MNIST_NETWORKS
from gw_jax.models.pretrained import save_pretrained
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.train.state import activation_dtype, model_to_dicts
from gw_jax.train.task import Batch, Curve, Mean, Weights

if TYPE_CHECKING:
    from gw_jax.classification.config import ClassificationConfig


class ClassificationTask:
    """Trains ``create_model(...)`` on labelled images by cross-entropy; see :class:`gw_jax.train.Task`.

    Args:
        config: the run.
        dataset: the data; None opens the sets that ``config.data`` names.

    Attributes:
        model_arguments: arguments of :func:`gw_jax.create_model` for the network in training.
        plain_model_arguments: the same with one running statistic per layer, for evaluation and export elsewhere.

    Example:
        >>> from flax import nnx
        >>> from gw_jax.classification import ClassificationConfig, ModelConfig
        >>> task = ClassificationConfig(model=ModelConfig(name="mlp", norm="bn")).make_task()  # opens the 5,000 digits
        >>> task.description, task.steps_per_epoch
        ('mlp, bn, on mnist5k', 62)
        >>> type(task.make_model(nnx.Rngs(0))).__name__
        'MLP'
    """

    best_metric = "eval/top1"
    example_name = "images"
    terminal_metrics: Mapping[str, str] = {"loss": "train/loss", "top1": "train/top1", "eval_top1": "eval/top1"}
    curves: Sequence[Curve] = (
        Curve("cross-entropy", ("train/loss", "eval/loss"), log_scale=True),
        Curve("top-1 error", ("train/top1", "eval/top1"), log_scale=True, complement=True),
    )

    def __init__(self, config: "ClassificationConfig", dataset: Dataset | None = None):
        data = config.data
        self.config = config
        self.dataset = dataset or open_dataset(
            data.name,
            data.data_dir,
            evaluation=data.eval_name,
            allow_partial=data.allow_partial,
            training=config.mode == "train",
        )
        self.spec = self.dataset.spec
        self.batch_size = data.batch_size
        self.steps_per_epoch = self.spec.num_train // data.batch_size
        self.eval_name = data.eval_name
        self.description = _description(config)
        arguments = functools.partial(
            model_arguments,
            config.model,
            num_classes=self.spec.num_classes,
            in_channels=self.spec.image_shape[-1],
            image_size=data.image_size or self.spec.image_shape[0],
        )
        self.model_arguments = arguments(batch_size=data.batch_size // config.accumulate_steps)
        self.plain_model_arguments = arguments()

    def check(self, num_devices: int, *, training: bool) -> None:
        """Checks devices, data and configuration against each other.

        Raises:
            ConfigError: what does not fit; the message says what to change.
        """
        check_devices(self.config, num_devices, training=training)
        check_images(self.config, self.spec)
        if not training:
            return
        check_batch_size(self.config, self.spec)
        size, (height, width, channels) = self.config.data.image_size, self.spec.image_shape
        check_augment(
            (size or height or 0, size or width or 0, channels),
            shift=self.config.data.shift,
            randaugment_layers=self.config.augment.randaugment_layers,
        )

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network as it is trained.

        Raises:
            ValueError: options that do not fit each other, such as channels that the groups do not divide.
        """
        return self._make(self.model_arguments, rngs)

    def train_batches(self, num_epochs: int, process_index: int, process_count: int) -> TrainBatches:
        """This process's shard of the training batches."""
        return TrainBatches(
            self.dataset.train,
            batch_size=self.config.data.batch_size,
            num_epochs=num_epochs,
            num_classes=self.spec.num_classes,
            seed=self.config.seed,
            process_index=process_index,
            process_count=process_count,
            **self._reading(),
        )

    def eval_batches(self, process_index: int, process_count: int) -> EvalBatches:
        """This process's shard of the evaluation batches."""
        return EvalBatches(
            self.dataset.evaluation,
            batch_size=self.config.data.eval_batch_size,
            num_classes=self.spec.num_classes,
            process_index=process_index,
            process_count=process_count,
            **self._reading(),
        )

    def loss(self, model: nnx.Module, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """Mean cross-entropy of the mixed and smoothed targets, where these are on, and top-1 of the labels."""
        images, targets, dropout_key = training_inputs(
            batch,
            key,
            data=self.config.data,
            augment=self.config.augment,
            label_smoothing=self.config.label_smoothing,
            spec=self.spec,
            dtype=self._dtype,
        )
        logits = model(images, dropout_key=dropout_key) if self.config.model.dropout else model(images)
        if targets.ndim == 1:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        else:
            losses = optax.softmax_cross_entropy(logits, targets.astype(logits.dtype))
        hits = jax.lax.argmax(logits, 1, jnp.int32) == batch["label"]
        return losses.mean(), {"top1": (hits.mean(dtype=jnp.float32), jnp.ones((), jnp.float32))}

    def predict(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """The sums of :func:`batch_sums`."""
        return batch_sums(model(evaluation_inputs(batch, self.spec, self._dtype)), batch)

    def evaluator(self) -> TopKEvaluator:
        """Loss, top-1 and top-5."""
        return TopKEvaluator()

    def read_weights(self, directory: pathlib.Path) -> Weights:
        """Reads an exported or converted model.

        Raises:
            CheckpointError: the directory is damaged.
            ConfigError: it holds another network than ``config.model`` describes, or ``init_new_head`` is set in an
                evaluation.
        """
        if self.config.init_new_head and self.config.mode == "evaluate":
            raise ConfigError(
                "config.init_new_head=True with config.mode=evaluate would evaluate a random last layer. Leave it out."
            )
        return read_weights(directory, self.plain_model_arguments, self._make, new_head=self.config.init_new_head)

    def export(self, directory: pathlib.Path, params: Any, batch_stats: Any, source: dict[str, Any]) -> None:
        """Writes a directory for :func:`gw_jax.load_pretrained`.

        Raises:
            CheckpointError: ``directory`` exists.
        """
        graphdef, _, _ = model_to_dicts(self._make(self.plain_model_arguments, AbstractRngs()))
        save_pretrained(directory, nnx.merge(graphdef, params, batch_stats), self.plain_model_arguments, source=source)

    @property
    def _dtype(self) -> str:
        return activation_dtype(self.config.dtype)

    def _make(self, arguments: dict[str, Any], rngs: nnx.Rngs) -> nnx.Module:
        param_dtype = jnp.float64 if self.config.dtype == "float64" else jnp.float32
        return create_model(**arguments, dtype=jnp.dtype(self._dtype), param_dtype=param_dtype, rngs=rngs)

    def _reading(self) -> dict[str, Any]:
        """Arguments that training and evaluation batches share."""
        data = self.config.data
        return {
            "transform": data.transform(),
            "channels": self.spec.image_shape[-1],
            "num_threads": data.num_threads,
            "num_workers": data.num_workers,
            "max_broken": data.max_broken,
        }


def _description(config: "ClassificationConfig") -> str:
    """Network, norm and data, such as "resnet50, gw at S1-B2, on imagenet2012"."""
    model = config.model
    if model.name == "lenet":
        network = model.name
    elif model.name in MNIST_NETWORKS:
        network = f"{model.name}, {model.norm}"
    else:
        network = f"{model.name}, {model.norm} at {model.whiten}"
    return f"{network}, on {config.data.name}"
