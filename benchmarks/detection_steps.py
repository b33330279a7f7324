"""The real training and evaluation steps of a detector's config, for a canvas and a number of images, without data."""

from typing import Any

import jax
import numpy as np

from benchmarks.steps import Steps, task_steps
from gw_jax.detection import pad_targets
from gw_jax.detection.config import DetectionConfig
from gw_jax.detection.task import DetectionTask
from gw_jax.errors import ConfigError
from gw_jax.train.config import validate


class Shapes:
    """Stands for the data of a detector: batches of shapes, no images."""

    steps_per_epoch = 1000
    name = "shapes"
    eval_name = None
    scenes = None


def make_detection_steps(config: DetectionConfig, devices: list[Any], *, canvas: str) -> Steps:
    """The steps of ``config`` for ``devices``; no array is made.

    Args:
        config: the run, with its batch sizes.
        devices: over which batches are sharded.
        canvas: one of ``config.canvases``.

    Raises:
        ConfigError: the config is not valid, does not fit the devices, or has no such canvas.
    """
    validate(config)
    if canvas not in config.canvases:
        raise ConfigError(f"config.canvases has no {canvas!r}; choose of {', '.join(config.canvases)}.")
    task = DetectionTask(config, Shapes())  # type: ignore[arg-type]
    sides = config.canvas_sizes()[config.canvases.index(canvas)]
    train = example_batch(config, sides, config.batch_size)
    evaluation = {
        name: array for name, array in example_batch(config, sides, config.eval_batch_size).items() if name in EVAL_FIELDS
    }
    return task_steps(task, config, devices, {"train": shapes_of(train), "eval": shapes_of(evaluation)})


EVAL_FIELDS = ("image", "size")


def shapes_of(batch: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of a batch."""
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}


def example_batch(config: DetectionConfig, canvas: tuple[int, int], images: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise that fills the canvas but for 40 columns, with 7 objects of 12 edges per image, about as many as in COCO."""
    rng = np.random.default_rng(seed)
    height, width = canvas
    size = np.array([(height, width - min(40, width // 8))] * images, np.int32)
    boxes, labels, polygons = [], [], []
    for _ in range(images):
        corners = rng.uniform(0, 0.5, (min(7, config.max_objects), 2)) * size[0, ::-1]
        sides = rng.uniform(0.1, 0.5, corners.shape) * size[0, ::-1]
        boxes.append(np.concatenate([corners, corners + sides - 1], 1))
        labels.append(rng.integers(1, config.num_classes, len(corners)))
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], 1)
        polygons.append([[(corner + side / 2 * (1 + circle)).ravel()] for corner, side in zip(corners, sides, strict=True)])
    targets = pad_targets(
        boxes,
        labels,
        polygons if config.model.mask_head else None,
        num_classes=config.num_classes,
        max_objects=config.max_objects,
        max_edges=config.max_edges,
    )
    image = rng.integers(0, 256, (images, height, width, 3), np.uint8)
    return {"image": image, "size": size, **targets}
