"""A tiny set in COCO's format, and detections of it, for tests of the evaluation."""

import json
from types import SimpleNamespace

import numpy as np

from gw_jax.detection import Detections

# Ids with gaps, as COCO's.
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "never seen"}]
SIZES = {11: (60, 80), 12: (40, 50), 20: (64, 96), 31: (50, 70)}


def square(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(number, image, category, x, y, w, h, crowd=0):
    segmentation = square(x, y, w, h)
    if crowd:
        from pycocotools import mask

        runs = mask.merge(mask.frPyObjects(segmentation, *SIZES[image]))
        segmentation = {"size": list(SIZES[image]), "counts": runs["counts"].decode()}
    return {
        **{"id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h},
        **{"iscrowd": crowd, "segmentation": segmentation},
    }


# Image 20 has no object; a crowd; small and medium objects, but no large one.
ANNOTATIONS = [
    annotation(1, 11, 3, 10, 10, 40, 40),
    annotation(2, 11, 7, 50, 5, 20, 20),
    annotation(3, 12, 3, 5, 5, 30, 30),
    annotation(4, 31, 7, 0, 0, 60, 45),
    annotation(5, 31, 3, 20, 20, 30, 20, crowd=1),
]


def write_set(directory, annotations=ANNOTATIONS):
    """The part of a prepared set that an evaluation needs."""
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SIZES.items()]
    path = directory / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    categories = tuple(SimpleNamespace(**category) for category in CATEGORIES)
    evaluation = SimpleNamespace(image_ids=np.array(list(SIZES)), sizes=np.array(list(SIZES.values()), np.int32))
    return SimpleNamespace(name="tiny", categories=categories, evaluation=evaluation, annotations=str(path))


def random_outputs(seed=0, count=5, scale=2, masks=True):
    """What the network gives for all images, ``scale`` times as large as the originals: noisy truth and noise."""
    rng = np.random.default_rng(seed)
    outputs = []
    for place, (image, (height, width)) in enumerate(SIZES.items()):
        boxes = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1).reshape(count, 4) * ([width - 1, height - 1] * 2)
        labels = rng.integers(1, 4, count)
        for row, truth in enumerate(a for a in ANNOTATIONS if a["image_id"] == image and not a["iscrowd"]):
            x, y, w, h = truth["bbox"]
            boxes[row] = np.clip(np.array([x, y, x + w - 1, y + h - 1]) + rng.uniform(-4, 4, 4), 0, None)
            labels[row] = [3, 7, 8].index(truth["category_id"]) + 1
        detections = Detections(
            (boxes * scale).astype(np.float32)[None],
            rng.uniform(0.05, 1, (1, count)).astype(np.float32),
            labels.astype(np.int32)[None],
            (np.arange(count) < count - 1)[None],
            rng.uniform(0.2, 1, (1, count, 28, 28)).astype(np.float32) if masks else None,
        )
        size = np.array([[height, width]], np.int32)
        batch = {
            **{"index": np.array([place], np.int32), "mask": np.array([True])},
            **{"size": size * scale, "original_size": size},
        }
        outputs.append({"detections": detections, "batch": batch, "finite": np.array([True])})
    return outputs
