"""The interface between a run and its task.

A run handles steps, checkpoints and processes; a task provides network, data, loss and evaluation. One loop then serves
every task, and the hard parts (exact resume, a stop that all hosts agree on, damaged checkpoints) exist once.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx

# Arrays, or pytrees of them, by name; their first axis is the batch. The name "stop" is reserved.
Batch = dict[str, Any]
# (total, count) of a metric; what is reported is the sum of the totals over the sum of the counts.
Mean = tuple[jax.Array, jax.Array]


class TrainBatches(Protocol):
    """This process's shard of the training batches, from any position to the end of the run."""

    @property
    def failure(self) -> Exception | None:
        """The error after which the run must end, or None.

        One of several processes does not raise it, but continues with substitute batches, so that all end at the same step.
        """
        ...

    def __next__(self) -> Batch:
        """The next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position, and what identifies the data, as JSON values; the same in every process."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a position that :meth:`get_state` returned. Raises DataError if the data are not the same."""
        ...

    def skip_to(self, step: int) -> None:
        """Continues after ``step`` batches from the start of the run."""
        ...

    def close(self) -> None:
        """Ends worker processes, if there are any."""
        ...


class EvalBatches(Protocol):
    """This process's shard of the evaluation batches: every pass yields the same, and every process the same number."""

    @property
    def failure(self) -> Exception | None:
        """As for :class:`TrainBatches`."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        ...

    def close(self) -> None:
        """Ends worker processes, if there are any."""
        ...


class Evaluator(Protocol):
    """Adds up what :meth:`Task.predict` returned for each batch of one pass, on the device or on the host."""

    def add(self, outputs: Any) -> None:
        """Adds the outputs for one batch: arrays that may still be being computed.

        They are replicated, or those of :class:`EvaluatesShards`.
        """
        ...

    def result(self) -> dict[str, float]:
        """The metrics of the pass, by their names in ``metrics.jsonl`` ("eval/..."). Raises DataError if nothing counts."""
        ...


@runtime_checkable
class EvaluatesShards(Protocol):
    """A task whose outputs stay on the devices that computed them: each process evaluates its own examples.

    For outputs that are too large to be copied to all devices, or for an evaluation that writes files. Every output of
    :meth:`Task.predict` then has the batch as its first axis, and the evaluator reads this process's part of it by
    :func:`gw_jax.train.mesh.local_rows`. Its ``result`` is called in all processes, which must agree on the metrics, for
    instance by :func:`gw_jax.train.distributed.run_on_main`.
    """

    def shard_evaluator(self, step: int, workdir: pathlib.Path) -> Evaluator:
        """A new evaluator for one pass, used in place of :meth:`Task.evaluator`.

        Args:
            step: training steps of the weights that are evaluated.
            workdir: the work directory, which all processes share; it may not exist yet in an evaluation.
        """
        ...


@runtime_checkable
class DrawsResult(Protocol):
    """A task that has more to draw than curves."""

    def draw(self, workdir: pathlib.Path) -> pathlib.Path | None:
        """Draws the result of a complete run into a file of its work directory; called in process 0 only.

        Returns:
            The path of the picture, or None where there is nothing to draw.

        Raises:
            UserError: it cannot be drawn. It becomes a warning, and so does OSError.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Curve:
    """One plot of ``curves.png``.

    Attributes:
        title: its title.
        metrics: names of the lines, as in ``metrics.jsonl``.
        log_scale: whether the y-axis is logarithmic.
        complement: whether ``1 - metric`` is drawn, such as the error for an accuracy.
        best: whether the "min" or the "max" of what is drawn is the best value.
    """

    title: str
    metrics: tuple[str, ...]
    log_scale: bool = False
    complement: bool = False
    best: Literal["min", "max"] = "min"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights from which a run starts.

    Attributes:
        arrays: parameters and statistics by path, such as "head/kernel"; paths that are missing keep their initial values.
        training: epochs done and momentum of the run that they come from, or None.
        momentum: momentum by path of the parameter, or None.
    """

    arrays: Mapping[str, np.ndarray]
    training: dict[str, Any] | None = None
    momentum: Mapping[str, np.ndarray] | None = None


class Task(Protocol):
    """Everything that a run needs from its task, which :meth:`gw_jax.train.TrainConfig.make_task` makes.

    A task may have the method of :class:`EvaluatesShards` or :class:`DrawsResult`, too.

    Attributes:
        best_metric: the metric of the evaluation by which checkpoints are the best; larger is better.
        example_name: plural of an example, for the name of the throughput, "train/{example_name}_per_sec".
        batch_size: examples per training step, over all devices.
        steps_per_epoch: training steps per epoch.
        terminal_metrics: metrics that the progress bar shows, as {short name: name}.
        curves: the plots of ``curves.png``.
        description: one line for plots that names the network and the data.
        eval_name: name of the evaluation data where it is not the data's own split, or None.

    Example:
        >>> from gw_jax.classification import ClassificationConfig
        >>> task = ClassificationConfig().make_task()  # a Task
        >>> task.batch_size, task.steps_per_epoch
        (64, 62)
    """

    best_metric: str
    example_name: str
    batch_size: int
    steps_per_epoch: int
    terminal_metrics: Mapping[str, str]
    curves: Sequence[Curve]
    description: str
    eval_name: str | None

    def check(self, num_devices: int, *, training: bool) -> None:
        """Checks configuration, data and devices against each other, before the work directory is claimed.

        Raises:
            ConfigError: what does not fit; the message says what to change.
        """
        ...

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network in the form in which it is trained. Raises ValueError for options that do not fit each other."""
        ...

    def train_batches(self, num_epochs: int, process_index: int, process_count: int) -> TrainBatches:
        """Opens the training data."""
        ...

    def eval_batches(self, process_index: int, process_count: int) -> EvalBatches:
        """Opens the evaluation data."""
        ...

    def loss(self, model: nnx.Module, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """The loss of a batch, and more metrics. Pure: ``model`` is in training mode, ``key`` is the only randomness."""
        ...

    def predict(self, model: nnx.Module, batch: Batch) -> Any:
        """Outputs for one evaluation batch: sums, or predictions per example. Pure: ``model`` is in evaluation mode."""
        ...

    def evaluator(self) -> Evaluator:
        """A new evaluator for one pass."""
        ...

    def read_weights(self, directory: pathlib.Path) -> Weights:
        """Reads the model in ``directory``, which must be the network of this task.

        Raises:
            CheckpointError: the directory is damaged.
            ConfigError: it holds another network.
        """
        ...

    def export(self, directory: pathlib.Path, params: Any, batch_stats: Any, source: dict[str, Any]) -> None:
        """Writes a model as a directory that users load.

        Args:
            directory: a new directory.
            params: the parameters.
            batch_stats: the batch statistics, one running statistic per layer.
            source: the origin of the model (work directory, step), as JSON values.

        Raises:
            CheckpointError: ``directory`` exists or cannot be written.
        """
        ...
