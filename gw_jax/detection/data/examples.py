"""Single scenes by their position in the order: decoded, resized, mirrored and placed on the canvas of their batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gw_jax.data.broken import MAX_SUBSTITUTES, Batch, broken_record, fatal_errors, name_of, nothing_readable
from gw_jax.data.decoding import open_image
from gw_jax.data.shards import ProcessShard
from gw_jax.detection.data.canvases import FLIP, SCALE, Canvas, CanvasOrder, EvalCanvasOrder, random_bits
from gw_jax.detection.data.resize import Polygons, flip_objects, resized_pixels, scale_objects
from gw_jax.detection.targets import pad_targets
from gw_jax.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneExamples:
    """Training scenes by their position in the run.

    Whether a scene is mirrored, and its size, depend on ``seed`` and its position in the global order only. One that cannot
    be read is replaced by the next of the same canvas.

    Attributes:
        source: the scenes.
        sizes: their heights and widths after each of the resizes of which one is drawn, int32 ``[k, n, 2]``.
        order: canvases and scenes of the batches.
        shard: of this process.
        seed: decides what is mirrored, and which size is drawn.
        flip: whether scenes are mirrored with probability 0.5.
        num_classes: with the background.
        max_objects: to which objects are padded.
        max_edges: to which the edges of an object are padded; None without a mask head.
    """

    source: Sequence[Any]
    sizes: np.ndarray
    order: CanvasOrder
    shard: ProcessShard
    seed: int
    flip: bool
    num_classes: int
    max_objects: int
    max_edges: int | None

    def __call__(self, position: int) -> Batch:
        """``image``, ``size``, the arrays of :func:`pad_targets`, and ``broken``, what the scene replaces.

        Raises:
            DataError: objects that do not fit the configuration, or no scene can be read.
        """
        global_index = self.shard.global_index(position)
        step, rank = divmod(global_index, self.shard.batch_size)
        canvas, indices = self.order.batch(step)
        index, broken = int(indices[rank]), broken_record()
        mirrored = self.flip and bool(random_bits(self.seed, FLIP, global_index, 1)[0] & 1)
        sizes = self.sizes[int(random_bits(self.seed, SCALE, global_index, 1)[0] % len(self.sizes))]
        for candidate, _ in zip(self.order.same_canvas(index), range(MAX_SUBSTITUTES), strict=False):
            try:
                with fatal_errors(self.source, candidate):
                    scene = self.source[candidate]
                    pixels = scene_pixels(scene, sizes[candidate], mirrored=mirrored)
            except DataError:
                raise
            except Exception as error:  # Readers and decoders raise whatever they hit in damaged bytes.
                broken = broken if broken["index"] >= 0 else broken_record(index, error)
                continue
            targets = self._targets(scene, candidate, sizes[candidate], mirrored)
            return {**placed(pixels, canvas), **targets, "broken": broken}
        raise nothing_readable(index, broken)

    def padding(self, canvas: Canvas) -> Batch:
        """An image of noise without objects, in place of what can no longer be read."""
        pixels = np.random.default_rng(0).integers(0, 256, (*canvas, 3), np.uint8)
        return {**placed(pixels, canvas), **self._padded(np.zeros((0, 4)), np.zeros(0, np.int32), [])}

    def _targets(self, scene: Any, index: int, size: np.ndarray, mirrored: bool) -> Batch:
        old, new = (scene.height, scene.width), tuple(size.tolist())
        boxes, polygons = scale_objects(scene.boxes, scene.polygons, old, new)
        if mirrored:
            boxes, polygons = flip_objects(boxes, polygons, new[1])
        # Of a large image, the box of a small object may have no area left in float32.
        rounded = boxes.astype(np.float32)
        kept = ((rounded[:, 2] > rounded[:, 0]) & (rounded[:, 3] > rounded[:, 1])).nonzero()[0]
        try:
            return self._padded(boxes[kept], scene.labels[kept], [polygons[place] for place in kept])
        except ValueError as error:
            raise DataError(f"{name_of(self.source, index)} cannot be trained on: {error}") from error

    def _padded(self, boxes: np.ndarray, labels: np.ndarray, polygons: Polygons) -> Batch:
        masks = self.max_edges is not None
        targets = pad_targets(
            [boxes],
            [labels],
            [polygons] if masks else None,
            num_classes=self.num_classes,
            max_objects=self.max_objects,
            max_edges=self.max_edges,
        )
        return {name: array[0] for name, array in targets.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSceneExamples:
    """Evaluation scenes by their position in a pass, which is padded to whole batches.

    Attributes:
        source: the scenes.
        sizes: their heights and widths after the resize, int32 ``[n, 2]``.
        order: canvases and scenes of the batches.
        shard: of this process.
    """

    source: Sequence[Any]
    sizes: np.ndarray
    order: EvalCanvasOrder
    shard: ProcessShard

    def __call__(self, position: int) -> Batch:
        """``image``, ``size``, ``original_size``, ``index``, ``mask`` and ``broken``.

        A scene that cannot be read is a black image with its ``index``, but ``mask`` is false. Padding is a black image,
        too, and its ``index`` is -1.
        """
        step, rank = divmod(self.shard.global_index(position), self.shard.batch_size)
        canvas, indices = self.order.batch(step)
        index = int(indices[rank])
        if index < 0:
            return self.padding(canvas)
        try:
            with fatal_errors(self.source, index):
                scene = self.source[index]
                pixels = scene_pixels(scene, self.sizes[index])
        except DataError:
            raise
        except Exception as error:  # As above.
            return {**self.padding(canvas), "index": np.asarray(index, np.int32), "broken": broken_record(index, error)}
        original = np.array((scene.height, scene.width), np.int32)
        return {
            **placed(pixels, canvas),
            "original_size": original,
            "index": np.asarray(index, np.int32),
            "mask": np.asarray(True),
            "broken": broken_record(),
        }

    def padding(self, canvas: Canvas) -> Batch:
        """A black image that does not count."""
        return {
            **placed(np.zeros((*canvas, 3), np.uint8), canvas),
            "original_size": np.array(canvas, np.int32),
            "index": np.asarray(-1, np.int32),
            "mask": np.asarray(False),
            "broken": broken_record(),
        }


def scene_pixels(scene: Any, size: np.ndarray, *, mirrored: bool = False) -> np.ndarray:
    """The pixels of a scene in RGB, resized to ``size`` (height, width), and perhaps mirrored.

    Raises:
        Exception: whatever Pillow raises for damaged bytes; ValueError for an image of another size than annotated.
    """
    picture = open_image(scene.image, 3, turn=scene.turn)
    if picture.size != (scene.width, scene.height):
        raise ValueError(
            f"{picture.size[0]}x{picture.size[1]} pixels (width x height), annotated are {scene.width}x{scene.height}"
        )
    height, width = size.tolist()
    return resized_pixels(picture, (height, width), mirrored=mirrored)


def placed(pixels: np.ndarray, canvas: Canvas) -> Batch:
    """``image``, with ``pixels`` in the top-left corner of a canvas of zeros, and ``size``."""
    image = np.zeros((*canvas, 3), np.uint8)
    image[: pixels.shape[0], : pixels.shape[1]] = pixels
    return {"image": image, "size": np.array(pixels.shape[:2], np.int32)}
