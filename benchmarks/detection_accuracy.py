"""Average precision of the detection quickstart by norm and seed, or of 8 of its images that are learned by heart.

    python -m benchmarks.detection_accuracy WORKDIR [--json] [--norms gw gn bn frozen_bn] [--seeds 0 1 2] [--overfit] [...]

Every run is ``python train.py --config=configs/detection_quickstart.py`` with a norm and a seed, one after the other, in a
directory of its own below WORKDIR; the same command again resumes. ``--overfit`` trains and evaluates on the same 8 scenes.
Other arguments, such as ``--config.num_steps=600``, go to every run. The spread is the largest minus the smallest value.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.machine import describe

ROOT = pathlib.Path(__file__).resolve().parent.parent
METRICS = ("eval/box_ap", "eval/box_ap50", "eval/mask_ap", "eval/mask_ap50")
NUM_IMAGES = 8
OVERFIT = (
    "--config.data.name=eight_scenes",
    "--config.data.train_min_sides=120",
    "--config.num_steps=900",
    "--config.eval_every_steps=900",
    "--config.eval_batch_size=8",
)


def prepare_eight_scenes(data_dir: str) -> None:
    """The first training scenes of ``digit_scenes`` that have objects, as a set to train and evaluate on."""
    from gw_jax.detection.data.digit_scenes import write_digit_scenes
    from gw_jax.detection.data.prepare_coco import prepare_coco

    with tempfile.TemporaryDirectory() as directory:
        annotations, images = write_digit_scenes(directory)["train"]
        content = json.loads(annotations.read_text())
        kept = sorted({annotation["image_id"] for annotation in content["annotations"]})[:NUM_IMAGES]
        content["images"] = [image for image in content["images"] if image["id"] in kept]
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
        annotations.write_text(json.dumps(content))
        prepare_coco("eight_scenes", data_dir, [(annotations, images)], (annotations, images), wait=True)


def train(workdir: pathlib.Path, norm: str, seed: int, arguments: list[str]) -> dict[str, float]:
    """The last evaluation of a run."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--config=configs/detection_quickstart.py",
        f"--config.model.norm={norm}",
        f"--config.seed={seed}",
        f"--workdir={workdir}",
        *arguments,
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    evaluations = [line for line in lines if METRICS[0] in line]
    return {name: evaluations[-1][name] for name in METRICS if name in evaluations[-1]}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and spread of every metric over the seeds."""
    return {
        name: {
            "mean": round(statistics.mean(run[name] for run in runs), 4),
            "spread": round(max(run[name] for run in runs) - min(run[name] for run in runs), 4),
        }
        for name in runs[0]
    }


def main() -> None:
    """Runs what is missing and prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--norms", nargs="+", default=["gw", "gn", "bn", "frozen_bn"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--overfit", action="store_true")
    args, others = parser.parse_known_args()
    workdir = args.workdir.resolve()
    arguments = others
    if args.overfit:
        data_dir = str(workdir / "data")
        prepare_eight_scenes(data_dir)
        arguments = [*OVERFIT, f"--config.data.data_dir={data_dir}", *others]
    results = {}
    for norm in args.norms:
        runs = [train(workdir / f"{norm}_{seed}", norm, seed, arguments) for seed in args.seeds]
        results[norm] = {"runs": dict(zip(map(str, args.seeds), runs, strict=True)), **summary(runs)}
        for name in runs[0]:
            values = " ".join(f"{run[name]:.3f}" for run in runs)
            print(f"{norm:10s} {name:16s} {values}  mean {results[norm][name]['mean']:.3f}", file=sys.stderr)
    if args.json:
        head = {**describe("flax", "numpy", "pycocotools"), "arguments": arguments, "overfit": args.overfit}
        print(json.dumps({**head, "norms": results}))


if __name__ == "__main__":
    main()
