"""The time of non-maximum suppression beside a greedy loop in NumPy, on random, clustered and chained boxes.

    python -m benchmarks.nms [--json] [--boxes=2000] [--rounds=15]

The loop drops what it has suppressed, so that its iterations get shorter. Both must keep the same boxes, or the benchmark
fails. Medians of interleaved runs in milliseconds; compilation is apart. A ratio is this project's time over the loop's:
below 1 is faster. "random": boxes of 10 to 200 pixels anywhere in 1,000 x 1,000. "clustered": around 50 centres. "chain":
each box overlaps its neighbours only, in the order of their scores, the worst case of algorithms that iterate to a fixed
point.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from benchmarks.timing import interleaved_medians
from gw_jax.ops.nms import nms

# Name -> IoU thresholds. Neighbours of the chain have an IoU of 3 / 8.
THRESHOLDS = {"random": (0.5, 0.7), "clustered": (0.5, 0.7), "chain": (0.3,)}


def greedy_loop(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """The definition: keep the best, drop what overlaps it, repeat. Returns bool ``[n]``."""
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    kept = np.zeros(len(boxes), bool)
    left = np.argsort(-scores, kind="stable")
    while len(left):
        best, left = left[0], left[1:]
        kept[best] = True
        width = np.maximum(np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left]) + 1, 0)
        height = np.maximum(np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left]) + 1, 0)
        intersection = width * height
        left = left[intersection / (area[best] + area[left] - intersection) <= boxes.dtype.type(threshold)]
    return kept


def make_boxes(name: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float32 ``[n, 4]`` and scores ``[n]``."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=number)
    if name == "chain":
        x = 5.0 * np.arange(number)
        boxes, scores = np.stack([x, 0 * x, x + 10, 0 * x], 1), np.linspace(1, 0.5, number)
    else:
        centre = rng.uniform(0, 1000, (number, 2))
        side = rng.uniform(10, 200, (number, 2))
        if name == "clustered":
            centre = centre[rng.integers(0, min(50, number), number)] + rng.normal(0, 8, (number, 2))
            side = 80 * np.exp(rng.normal(0, 0.15, (number, 2)))
        boxes = np.concatenate([centre - side / 2, centre + side / 2], 1)
    return boxes.astype(np.float32), scores.astype(np.float32)


def measure(name: str, number: int, rounds: int) -> list[dict[str, Any]]:
    """One case per threshold of the boxes ``name``.

    Raises:
        RuntimeError: the two ways keep different boxes.
    """
    boxes, scores = make_boxes(name, number)
    cases = []
    for threshold in THRESHOLDS[name]:
        suppress = jax.jit(lambda boxes, scores, threshold=threshold: nms(boxes, scores, threshold))
        on_device = jax.device_put((boxes, scores))
        expected = greedy_loop(boxes, scores, threshold)
        if not np.array_equal(suppress(*on_device), expected):
            raise RuntimeError(f"{name} at {threshold}: other boxes than the greedy loop's")

        def ours(suppress: Any = suppress, on_device: Any = on_device) -> None:
            jax.block_until_ready(suppress(*on_device))

        def loop(threshold: float = threshold) -> None:
            greedy_loop(boxes, scores, threshold)

        medians, _ = interleaved_medians({"ours": ours, "loop": loop}, rounds)
        ratio = medians["ours"] / medians["loop"]
        cases.append(
            {"boxes": name, "number": number, "threshold": threshold, "kept": int(expected.sum())}
            | {"ours_ms": medians["ours"], "numpy_ms": medians["loop"], "ratio_numpy": ratio}
        )
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and one JSON object where wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--boxes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(arguments)
    cases = [case for name in THRESHOLDS for case in measure(name, args.boxes, args.rounds)]
    print("boxes      threshold  kept     ours    NumPy  ratio")
    for case in cases:
        times = f"{case['ours_ms']:8.3f} {case['numpy_ms']:8.3f} {case['ratio_numpy']:6.3f}"
        print(f"{case['boxes']:10s} {case['threshold']:9.1f} {case['kept']:5d} {times}")
    if args.json:
        result = {
            **machine.describe("numpy"),
            "rounds": args.rounds,
            "cases": cases,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
