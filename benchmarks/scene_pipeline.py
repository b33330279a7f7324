"""Images of COCO's size per second that one core decodes, resizes and places on canvases for a detector.

    python -m benchmarks.scene_pipeline [--json] [--rounds=5] [--small]

JPEG files of 640 x 480 pixels in memory (made of the two photographs in scikit-learn, quality 90), each with 8 objects of
24 edges, become training batches of 16 on canvases of 800 x 1344: decoded, resized to 800 x 1066, half of them mirrored,
with boxes and polygons padded to 100 objects of 512 edges. The figure is images per second of *processor time*, over all
threads, so the median of the rounds holds on a busy machine, too. Decoding and resizing alone are given beside it.
"""

import argparse
import importlib.metadata
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gw_jax.data.decoding import open_image
from gw_jax.detection.data.batches import SceneBatches
from gw_jax.detection.data.canvases import CanvasOrder
from gw_jax.detection.data.resize import resized_pixels, target_size, target_sizes
from gw_jax.detection.data.scenes import Scene
from gw_jax.detection.inputs import CANVASES

HEIGHT, WIDTH, BATCH = 480, 640, 16
OBJECTS, EDGES = 8, 24
# Images per second of public runs: detectron2's Mask R-CNN R50 on 8 V100, MLPerf v3.1 on one H100.
DEVICES = {"8 V100, 62 images/s": 62, "one H100, 143 images/s": 143}


def photographs() -> list[bytes]:
    """The two photographs and their mirror images as JPEG files of 640 x 480 pixels."""
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_images

    files = []
    for pixels in load_sample_images().images:
        picture = ImageOps.fit(Image.fromarray(pixels), (WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        for each in (picture, ImageOps.mirror(picture)):
            buffer = io.BytesIO()
            each.save(buffer, "JPEG", quality=90)
            files.append(buffer.getvalue())
    return files


class InMemory:
    """Random access to scenes, as a prepared set gives it."""

    def __init__(self, files: list[bytes], count: int):
        self._files = files
        self.sizes = np.tile(np.array([HEIGHT, WIDTH], np.int32), (count, 1))
        rng = np.random.default_rng(0)
        self._polygons = []
        for _ in range(OBJECTS):
            angles = np.linspace(0, 2 * np.pi, EDGES, endpoint=False)
            centre, radius = rng.uniform(100, 380, 2), rng.uniform(20, 90)
            points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
            self._polygons.append([points.reshape(-1)])
        corners = [part[0].reshape(-1, 2) for part in self._polygons]
        self._boxes = np.array([[*each.min(0), *each.max(0)] for each in corners])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Scene:
        image, labels = self._files[index % len(self._files)], np.arange(1, OBJECTS + 1, dtype=np.int32)
        return Scene(image, index, f"{index}.jpg", HEIGHT, WIDTH, self._boxes, labels, self._polygons)


def batches(files: list[bytes], count: int) -> Any:
    """An epoch of ``count`` batches, read by one thread."""
    source = InMemory(files, count * BATCH)
    sizes = target_sizes(source.sizes)
    order = CanvasOrder(sizes, CANVASES, BATCH, seed=0)
    return SceneBatches(
        source,
        sizes,
        order,
        num_epochs=1,
        seed=0,
        num_classes=81,
        max_objects=100,
        max_edges=512,
        num_threads=1,
        max_broken=0,
    )


def rate(work: Callable[[], Any], images: int) -> float:
    """Images per second of processor time."""
    began = time.process_time()
    work()
    return images / (time.process_time() - began)


def main() -> None:
    """Measures, prints a table, and one JSON object with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median is taken")
    parser.add_argument("--small", action="store_true", help="a few images, to see that it runs")
    args = parser.parse_args()
    files = photographs()
    count = 1 if args.small else 8
    size = target_size(HEIGHT, WIDTH)
    decoded = [open_image(file, 3) for file in files]
    several = count * BATCH // len(files)
    next(batches(files, 1))  # Imports.

    def decode() -> None:
        for file in files * several:
            open_image(file, 3).load()

    def resize() -> None:
        for picture in decoded * several:
            resized_pixels(picture, size)

    def whole() -> None:
        for _ in batches(files, count):
            pass

    kinds = {"decoding": decode, f"resizing to {size[0]} x {size[1]}": resize, "training batches": whole}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(1 if args.small else args.rounds):
        for name, work in kinds.items():
            rates[name].append(rate(work, count * BATCH))
    figures = {name: statistics.median(values) for name, values in rates.items()}
    for name, figure in figures.items():
        print(f"{name:26s}{figure:8.1f} images/s per core")
    feeds = {name: wanted / figures["training batches"] for name, wanted in DEVICES.items()}
    for name, cores in feeds.items():
        print(f"cores that feed {name}: {cores:.1f}")
    if args.json:
        print(
            json.dumps(
                {
                    "processor": platform.processor() or platform.machine(),
                    "versions": {name: importlib.metadata.version(name) for name in ("grain", "pillow", "numpy")},
                    "image_bytes": statistics.mean(map(len, files)),
                    "images_per_core_second": figures,
                    "cores_to_feed": feeds,
                }
            )
        )


if __name__ == "__main__":
    main()
