"""Scenes in memory, with the attributes of a prepared set."""

import io

import numpy as np
from PIL import Image

from gw_jax.detection.data.scenes import Category, Scene, Scenes


def encoded(pixels, kind="PNG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


class FakeRecords(list):
    """One split; those at ``broken`` are read as half a file."""

    digest, has_masks = "0123", True

    def __init__(self, scenes, broken=()):
        scenes = list(scenes)
        super().__init__(scenes)
        self.broken = set(broken)
        self.sizes = np.array([(scene.height, scene.width) for scene in scenes], np.int32).reshape(-1, 2)
        self.image_ids = np.array([scene.image_id for scene in scenes], np.int64)
        self.max_objects = max((len(scene.boxes) for scene in scenes), default=0)
        self.max_edges = 4

    def __getitem__(self, index):
        scene = super().__getitem__(index)
        return scene._replace(image=scene.image[: len(scene.image) // 2]) if index in self.broken else scene

    def where(self, index):
        return f"image {self.image_ids[index]} of fake"


def scene(number, height, width, objects=1):
    """Noise with bright squares, each of which is an object."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
    boxes = []
    for _ in range(objects):
        side = int(rng.integers(12, 24))
        y, x = (int(rng.integers(0, edge - side)) for edge in (height, width))
        pixels[y : y + side, x : x + side] += 120
        boxes.append((x, y, x + side - 1, y + side - 1))
    corners = [[np.array([x1, y1, x2 + 1, y1, x2 + 1, y2 + 1, x1, y2 + 1], np.float64)] for x1, y1, x2, y2 in boxes]
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    labels = rng.integers(1, 3, objects).astype(np.int32)
    return Scene(encoded(pixels), 7 * number + 3, f"{number}.png", height, width, boxes, labels, corners)


def records(wide=7, high=4, **options):
    """Wide and high images in turn, every fifth without objects."""
    kinds = [(48, 72)] * wide + [(72, 48)] * high
    order = np.random.default_rng(0).permutation(len(kinds))
    return FakeRecords([scene(i, *kinds[place], objects=i % 5 and 2) for i, place in enumerate(order)], **options)


def fake_scenes(train=None, evaluation=None):
    """A set of two classes."""
    train = records() if train is None else train
    evaluation = records(5, 3) if evaluation is None else evaluation
    return Scenes("fake", (Category(4, "small"), Category(9, "large")), train, evaluation, "annotations.json")
