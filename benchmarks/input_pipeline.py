"""Images per second that one core decodes, crops and resizes for training, beside tf.data's fused decode-and-crop.

    python -m benchmarks.input_pipeline [--json] [--rounds=5] [--small]

Both pipelines get the same JPEG files of 500 x 375 pixels in memory (cut from the photograph that matplotlib ships), draw
random crops of 8 to 100 % of the area, resize them to 224 x 224 and make batches of 64. ``tf.data`` decodes only the crop
(``tf.image.decode_and_crop_jpeg``); it is measured with the antialiased resize, which is what this project does and what
networks are evaluated with, and with the cheaper one that is not antialiased. Rounds alternate. The figure is images per
second of *processor time*, over all threads, so that threads of either library count; ratios are medians over the rounds.

Needs the extra ``prepare`` (TensorFlow). ``feeds`` says how many cores of this machine would feed a device that trains the
given images per second.
"""

import argparse
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gw_jax.data import TrainBatches
from gw_jax.data.images import Transform

WIDTH, HEIGHT, SIZE, BATCH = 500, 375, 224, 64
# Images per second: the least that an H200 should train with BatchNorm, and the MLPerf record on that card.
DEVICES = {"H200, 3,500 images/s": 3500, "H200, MLPerf record": 7945}


def photographs(count: int) -> list[bytes]:
    """JPEG files of 500 x 375 pixels, quality 90, cut at different places from a photograph."""
    import matplotlib
    from PIL import Image

    picture = Image.open(pathlib.Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        width = int(rng.integers(380, picture.size[0] + 1))
        height = width * HEIGHT // WIDTH
        left, top = (int(rng.integers(0, edge - cut + 1)) for edge, cut in zip(picture.size, (width, height), strict=True))
        cut = picture.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        cut.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


class InMemory:
    """Random access to examples, as a prepared data set gives it."""

    def __init__(self, files: list[bytes]):
        self._files = files

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._files[index % len(self._files)], "label": index % 1000}


def ours(files: list[bytes]) -> Iterator[Any]:
    """This project's batches, read by one thread."""
    transform = Transform(size=SIZE, crop=True)
    return TrainBatches(
        InMemory(files), batch_size=BATCH, num_epochs=1, seed=0, transform=transform, num_threads=1, max_broken=0
    )


def tensorflow(files: list[bytes], *, antialias: bool) -> Iterator[Any]:
    """The same with tf.data."""
    import tensorflow as tf

    def load(encoded: Any) -> Any:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros([1, 0, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(encoded, box, channels=3)
        image = tf.image.resize(image, [SIZE, SIZE], method="bilinear", antialias=antialias)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices(files).repeat().map(load).batch(BATCH)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options).as_numpy_iterator()


def rate(batches: Iterator[Any], count: int) -> float:
    """Images per second of processor time over ``count`` batches."""
    began = time.process_time()
    for _ in itertools.islice(batches, count):
        pass
    return count * BATCH / (time.process_time() - began)


def main() -> None:
    """Measures, prints a table, and one JSON object with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each pipeline, alternating")
    parser.add_argument("--small", action="store_true", help="a tenth of the images, to see that it runs")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    files = photographs(16)
    count = 2 if args.small else 20
    makers: dict[str, Callable[[], Iterator[Any]]] = {
        "gw_jax": lambda: ours(files),
        "tf.data, antialiased": lambda: tensorflow(files, antialias=True),
        "tf.data, not antialiased": lambda: tensorflow(files, antialias=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(1 if args.small else args.rounds):
        for name, make in makers.items():
            batches = make()
            rate(batches, 2)  # Starts threads, traces graphs.
            rates[name].append(rate(batches, count))
            if isinstance(batches, TrainBatches):
                batches.close()  # It would read ahead while the others are measured.
    figures = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates["gw_jax"], values, strict=True))
        for name, values in rates.items()
        if name != "gw_jax"
    }
    for name, figure in figures.items():
        print(f"{name:26s}{figure:8.0f} images/s per core" + (f"   ratio {ratios[name]:.2f}" if name in ratios else ""))
    feeds = {name: wanted / figures["gw_jax"] for name, wanted in DEVICES.items()}
    for name, cores in feeds.items():
        print(f"cores that feed one {name}: {cores:.1f}")
    if args.json:
        versions = {name: importlib.metadata.version(name) for name in ("grain", "pillow", "numpy")}
        versions["tensorflow"] = __import__("tensorflow").__version__
        sizes = [len(file) for file in files]
        print(
            json.dumps(
                {
                    "processor": platform.processor() or platform.machine(),
                    "versions": versions,
                    "image_bytes": statistics.mean(sizes),
                    "images_per_core_second": figures,
                    "ratio": ratios["tf.data, antialiased"],
                    "ratio_not_antialiased": ratios["tf.data, not antialiased"],
                    "cores_to_feed": feeds,
                }
            )
        )


if __name__ == "__main__":
    main()
