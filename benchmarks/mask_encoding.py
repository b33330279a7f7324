"""Images per second whose detected masks one core pastes and encodes for an evaluation, and the memory that takes.

    python -m benchmarks.mask_encoding [--json] [--images=5000] [--no_ap] [--small]

As many images as COCO's 2017 evaluation has, of 640 x 480 pixels with 100 detections each (masks of 28 x 28, sides of 16
to 400 pixels, 80 categories), go through :class:`gw_jax.detection.coco_evaluator.CocoEvaluator` as in a run: each mask is
pasted into its image and encoded on its own, and results are kept as JSON text. Then pycocotools computes average
precision, for 7 objects per image, unless ``--no_ap`` is given. The figures are images per second of *processor time*, and
the highest resident memory of the process until then, with JAX and all packages.
"""

import argparse
import json
import pathlib
import resource
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import machine
from gw_jax.detection.coco_evaluator import CocoEvaluator
from gw_jax.detection.data.coco_file import Category
from gw_jax.detection.detections import Detections

HEIGHT, WIDTH = 480, 640
NETWORK_HEIGHT, NETWORK_WIDTH = 800, 1066
DETECTIONS, OBJECTS, MASK, BATCH = 100, 7, 28, 8
CATEGORIES = tuple(Category(number, f"category {number}") for number in range(1, 81))
SIDES = (16, 400)  # pixels of the image


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """``count`` boxes x1 y1 x2 y2 inside of an image, their sides log-uniform."""
    sides = np.exp(rng.uniform(*np.log(SIDES), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides)
    return np.concatenate([corners, corners + sides], 1)


def masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """``count`` smooth masks: probabilities that fall at an irregular distance from the centre."""
    y, x = np.mgrid[-1 : 1 : MASK * 1j, -1 : 1 : MASK * 1j]
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    shape = (count, 1, 1)
    wave = 0.15 * np.sin(rng.integers(2, 7, shape) * angle + rng.uniform(0, 6.3, shape))
    return (1 / (1 + np.exp(12 * (radius - rng.uniform(0.7, 1.0, shape) - wave)))).astype(np.float32)


def batch(rng: np.random.Generator, start: int, images: int) -> dict[str, Any]:
    """Detections of the images from ``start`` on, as the evaluation of a run gives them."""
    index = np.arange(start, start + BATCH)
    present = np.broadcast_to(index[:, None] < images, (BATCH, DETECTIONS))
    ratio = np.array([NETWORK_WIDTH / WIDTH, NETWORK_HEIGHT / HEIGHT] * 2)
    found = Detections(
        (boxes(rng, BATCH * DETECTIONS) * ratio).astype(np.float32).reshape(BATCH, DETECTIONS, 4),
        rng.uniform(0.05, 1, (BATCH, DETECTIONS)).astype(np.float32),
        rng.integers(1, len(CATEGORIES) + 1, (BATCH, DETECTIONS)),
        present,
        masks(rng, BATCH * DETECTIONS).reshape(BATCH, DETECTIONS, MASK, MASK),
    )
    sizes = {
        "size": np.tile([NETWORK_HEIGHT, NETWORK_WIDTH], (BATCH, 1)),
        "original_size": np.tile([HEIGHT, WIDTH], (BATCH, 1)),
    }
    places = np.where(index < images, index, -1)
    return {"detections": found, "batch": {"index": places, "mask": places >= 0, **sizes}}


def annotations(rng: np.random.Generator, images: int) -> dict[str, Any]:
    """Ground truth in COCO's format: rectangles."""
    objects = []
    for number, (x1, y1, x2, y2) in enumerate(boxes(rng, images * OBJECTS).tolist(), 1):
        objects.append(
            {
                "id": number,
                "image_id": (number - 1) // OBJECTS + 1,
                "category_id": int(rng.integers(1, len(CATEGORIES) + 1)),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
            }
        )
    pictures = [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in range(1, images + 1)]
    return {"images": pictures, "annotations": objects, "categories": [category._asdict() for category in CATEGORIES]}


def peak_memory() -> int:
    """The highest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(images: int, directory: pathlib.Path, average_precision: bool) -> dict[str, Any]:
    """Encodes the detections of ``images`` images, and evaluates them if ``average_precision`` says so."""
    rng = np.random.default_rng(0)
    path = directory / "annotations.json"
    evaluation = SimpleNamespace(image_ids=np.arange(1, images + 1))
    evaluator = CocoEvaluator(SimpleNamespace(categories=CATEGORIES, evaluation=evaluation, annotations=path), directory)
    evaluator.add(batch(rng, images, images))  # Imports; only padding.
    before, seconds = peak_memory(), 0.0
    # The evaluator converts a batch when the next one comes: the last one holds only padding.
    for start in range(0, images + BATCH, BATCH):
        outputs = batch(rng, start, images)
        began = time.process_time()
        evaluator.add(outputs)
        seconds += time.process_time() - began
    result = {
        "images": images,
        "detections_per_image": DETECTIONS,
        "images_per_core_second": images / seconds,
        "bytes_before": before,
        "bytes": peak_memory(),
    }
    if not average_precision:
        return result
    path.write_text(json.dumps(annotations(rng, images)))
    began = time.process_time()
    evaluator.result()
    size = (directory / "detections-0.json").stat().st_size
    return {
        **result,
        "ap_seconds": time.process_time() - began,
        "bytes_with_ap": peak_memory(),
        "file_bytes": size,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, and prints a few lines, and one JSON object with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--no_ap", action="store_true", help="only paste and encode")
    parser.add_argument("--small", action="store_true", help="a few images, to see that it runs")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        result = measure(12 if args.small else args.images, pathlib.Path(directory), not args.no_ap)
    print(f"{result['images']:,} images with {DETECTIONS} masks: {result['images_per_core_second']:.1f} images/s per core")
    print(f"memory: {result['bytes'] / 1e9:.2f} GB, of which {result['bytes_before'] / 1e9:.2f} GB before the first image")
    if not args.no_ap:
        print(f"average precision: {result['ap_seconds']:.0f} s more, memory {result['bytes_with_ap'] / 1e9:.2f} GB")
    if args.json:
        print(json.dumps({**machine.describe("numpy", "pycocotools"), **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
