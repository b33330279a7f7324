"""The data of a detector's run: a prepared set, checked against the configuration before anything is trained."""

import pathlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gw_jax.detection.coco_evaluator import CocoEvaluator
from gw_jax.detection.data.batches import EvalSceneBatches, SceneBatches
from gw_jax.detection.data.canvases import CanvasOrder, EvalCanvasOrder, listed
from gw_jax.detection.data.resize import target_sizes
from gw_jax.detection.data.scenes import Scenes, open_scenes
from gw_jax.errors import ConfigError
from gw_jax.train.distributed import is_main

if TYPE_CHECKING:
    from gw_jax.detection.config import DetectionConfig


class SceneData:
    """The set that ``config.data`` names, as a :class:`gw_jax.detection.task.DetectionData`.

    Args:
        config: the run.
        scenes: the set; None opens it.

    Attributes:
        scenes: the set.
        steps_per_epoch: training batches of an epoch; 0 where nothing is trained.

    Raises:
        ConfigError: number of classes, canvases, batch or limits do not fit the set; the message says what to change.
        DataError: the set is not prepared.
    """

    eval_name: str | None = None

    def __init__(self, config: "DetectionConfig", scenes: Scenes | None = None):
        training = config.mode == "train"
        self.config, self.name = config, config.data.name
        self.scenes = scenes or open_scenes(config.data.name, config.data.data_dir, training=training)
        self.steps_per_epoch = 0
        _check_classes(config, self.scenes)
        canvases, evaluation = config.canvas_sizes(), self.scenes.evaluation
        if training:
            source = self.scenes.train
            _check_limits(config, source)
            sides = config.data.train_min_sides or (config.data.min_side,)
            self._sizes = np.stack([target_sizes(source.sizes, side, config.data.max_side) for side in sides])
            # By the largest of its sizes, so that the order does not depend on which of them is drawn.
            largest = self._sizes.max(0)
            self._order = CanvasOrder(largest, canvases, config.batch_size, config.seed, source.where)
            self.steps_per_epoch = self._order.steps_per_epoch
            if is_main():
                self._warn_left_out()
        self._eval_sizes = target_sizes(evaluation.sizes, config.data.min_side, config.data.max_side)
        self._eval_order = EvalCanvasOrder(self._eval_sizes, canvases, config.eval_batch_size, evaluation.where)

    def train_batches(self, num_epochs: int, process_index: int, process_count: int) -> SceneBatches:
        """This process's shard of the training batches."""
        config = self.config
        return SceneBatches(
            self.scenes.train,
            self._sizes,
            self._order,
            num_epochs=num_epochs,
            seed=config.seed,
            num_classes=config.num_classes,
            max_objects=config.max_objects,
            max_edges=config.max_edges if config.model.mask_head else None,
            flip=config.data.flip,
            process_index=process_index,
            process_count=process_count,
            **self._reading(),
        )

    def eval_batches(self, process_index: int, process_count: int) -> EvalSceneBatches:
        """This process's shard of the evaluation batches."""
        return EvalSceneBatches(
            self.scenes.evaluation,
            self._eval_sizes,
            self._eval_order,
            process_index=process_index,
            process_count=process_count,
            **self._reading(),
        )

    def evaluator(self, workdir: pathlib.Path | None = None, step: int = 0) -> CocoEvaluator:
        """Average precision by pycocotools."""
        return CocoEvaluator(self.scenes, workdir, step)

    def _reading(self) -> dict[str, Any]:
        """Arguments that training and evaluation batches share."""
        data = self.config.data
        return {"num_threads": data.num_threads, "num_workers": data.num_workers, "max_broken": data.max_broken}

    def _warn_left_out(self) -> None:
        left_out = self._order.left_out
        if left_out:
            counts = ", ".join(f"{listed([canvas])} takes {count}" for canvas, count in left_out.items())
            print(
                f"warning: {sum(left_out.values())} of {len(self.scenes.train)} training images are never used, because "
                f"their canvas takes less than a batch of them ({counts}; config.batch_size={self.config.batch_size}). "
                "Choose a smaller batch, or canvases that take more of the images.",
                file=sys.stderr,
                flush=True,
            )


def _check_classes(config: "DetectionConfig", scenes: Scenes) -> None:
    needed = len(scenes.categories) + 1
    if config.num_classes != needed:
        raise ConfigError(
            f"config.num_classes={config.num_classes} does not fit {config.data.name!r}, which has {needed - 1} "
            f"categories: set config.num_classes={needed}, one more for the background."
        )


def _check_limits(config: "DetectionConfig", source: Any) -> None:
    limits = {"max_objects": ("objects in an image", source.max_objects)}
    if config.model.mask_head:
        if not source.has_masks:
            raise ConfigError(
                f"config.model.mask_head=True needs a mask of every training object, and {config.data.name!r} has objects "
                "without one. Prepare it from annotations with segmentation, or set config.model.mask_head=False."
            )
        limits["max_edges"] = ("edges in an object's polygons", source.max_edges)
    for field, (what, needed) in limits.items():
        given = getattr(config, field)
        if given < needed:
            raise ConfigError(
                f"config.{field}={given} is too small for {config.data.name!r}, which has up to {needed} {what}; set "
                f"config.{field}={needed} or more."
            )
