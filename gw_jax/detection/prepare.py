"""``python -m gw_jax.detection.prepare NAME --train JSON IMAGES --eval JSON IMAGES [--data_dir=DIR]``: prepare a set, once.

JSON is a file of annotations in COCO's format, IMAGES the folder of its images. ``--train`` may be given more than once.
After an interruption, repeat the command: a set appears whole or not at all.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from gw_jax.data.datasets import OWN_BUILDERS, check_data_dir
from gw_jax.data.prepare.names import check_new_name
from gw_jax.detection.data.canvases import fitting_canvases
from gw_jax.detection.data.prepare_coco import prepare_coco, read_facts
from gw_jax.detection.data.scenes import OWN_SETS, Scenes, open_scenes
from gw_jax.errors import UserError

# The resize rule of COCO's configurations.
_MIN_SIDE, _MAX_SIDE = 800, 1333
_MAX_NAMED = 5
# COCO's recipe passes 12 times over 117,000 images. A set with less than this many gets a length of its own.
_LARGE_SET = 100_000
_PASSES, _LEAST_STEPS, _SMALL_BATCH, _SMALL_BATCH_RATE = 12, 1_000, 2, 0.0025


def main(arguments: list[str] | None = None) -> None:
    """Prepares the set that the command line names, counts it and says what to do next."""
    parser = argparse.ArgumentParser(
        prog="python -m gw_jax.detection.prepare",
        description="Prepare images with boxes and polygons, annotated in COCO's format, in ArrayRecord files.",
        epilog="COCO 2017: coco2017 --train annotations/instances_train2017.json train2017 "
        "--eval annotations/instances_val2017.json val2017",
    )
    parser.add_argument("name", help="the name that the set gets: small letters, digits and _")
    for flag, action, text in (
        ("--train", "append", "annotations and images to train on; more than one pair may be given"),
        ("--eval", "store", "annotations and images to evaluate on"),
    ):
        parser.add_argument(flag, nargs=2, required=True, action=action, metavar=("JSON", "IMAGES"), help=text)
    parser.add_argument(
        "--data_dir", help="where prepared sets go, a path or a bucket; default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
    )
    parser.add_argument("--keep_empty", action="store_true", help="train on images without objects, too")
    given = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)
    try:
        check_data_dir(given.data_dir)
        check_new_name(given.name, {*OWN_SETS, *OWN_BUILDERS})
        data_dir = None if given.data_dir is None else os.path.expanduser(given.data_dir)
        train = [(_path(json), _path(images)) for json, images in given.train]
        evaluation = (_path(given.eval[0]), _path(given.eval[1]))
        prepare_coco(given.name, data_dir, train, evaluation, keep_empty=given.keep_empty)
        print(report(open_scenes(given.name, data_dir), read_facts(given.name, data_dir), data_dir))
    except UserError as error:
        sys.exit(f"error: {error}")


def report(scenes: Scenes, facts: Mapping[str, Any], data_dir: str | None) -> str:
    """What a set holds, what was dropped, and the command that trains on it.

    Args:
        scenes: the set.
        facts: of :func:`gw_jax.detection.data.prepare_coco.read_facts`.
        data_dir: as it was given.
    """
    lines = [f"{scenes.name} is ready in {os.path.dirname(scenes.annotations)}: {len(scenes.categories)} categories"]
    for split in ("train", "validation"):
        lines += _split_lines(split, facts[split])
    if empty := facts["train"]["categories_without_objects"]:
        more = f" and {len(empty) - _MAX_NAMED} more" if len(empty) > _MAX_NAMED else ""
        lines.append(f"Categories without an object to train on: {', '.join(empty[:_MAX_NAMED])}{more}")
    if shared := facts["validation"]["images_in_train"]:
        lines.append(f"Warning: {shared:,} of the images to evaluate on are also trained on.")
    canvases = fitting_canvases(np.concatenate([scenes.train.sizes, scenes.evaluation.sizes]), _MIN_SIDE, _MAX_SIDE)
    names = ", ".join(f"{height}x{width}" for height, width in canvases)
    lines.append(f"Canvases that take all images at {_MIN_SIDE}/{_MAX_SIDE} (config.canvases): {names}")
    options = [
        f"--config.data.name={scenes.name}",
        *([f"--config.data.data_dir={data_dir}"] if data_dir else []),
        f"--config.num_classes={len(scenes.categories) + 1}",
        f"--config.max_objects={max(facts['train']['max_objects'], 1)}",
        f"--config.max_edges={max(-(-facts['train']['max_edges'] // 64) * 64, 64)}",
    ]
    num_images = facts["train"]["images"]
    if num_images < _LARGE_SET:
        options += _fine_tuning(num_images)
        lines.append(
            "DETECTOR: directory of an exported or converted detector of the same --config. Without one, leave out "
            "init_new_predictors, and give init_from an ImageNet model."
        )
    options.append(f"--workdir=runs/{scenes.name}")
    lines.append(f"Train with: python train.py --config=configs/coco_faster_r50_gw.py {' '.join(options)}")
    return "\n".join(lines)


def _fine_tuning(num_images: int) -> list[str]:
    """Options of a run on a small set: from a detector, in small batches, with steps in proportion to the images."""
    steps = max(-(-num_images * _PASSES // _SMALL_BATCH // 100) * 100, _LEAST_STEPS)
    return [
        "--config.init_from=DETECTOR",
        "--config.init_new_predictors=True",
        f"--config.batch_size={_SMALL_BATCH}",
        f"--config.optimizer.learning_rate={_SMALL_BATCH_RATE}",
        f"--config.num_steps={steps}",
        f"--config.eval_every_steps={steps // 5}",
        f"--config.schedule.milestone_steps={steps * 2 // 3},{steps * 9 // 10}",
        f"--config.schedule.warmup_steps={min(steps // 10, 499)}",
    ]


def _path(given: str) -> pathlib.Path:
    return pathlib.Path(given).expanduser()


def _split_lines(split: str, facts: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{split}: images {facts['images']:,} (without objects {facts['images_without_objects']:,}), objects "
        f"{facts['objects']:,}, crowds {facts['crowds']:,}; largest numbers: objects per image {facts['max_objects']:,}, "
        f"polygons per object {facts['max_parts']:,}, edges per object {facts['max_edges']:,}"
    ]
    dropped = {**facts["dropped_images"], **facts["dropped"]}
    if dropped:
        lines.append("  dropped: " + ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items())))
    if missing := facts["objects_without_mask"]:
        lines.append(f"  objects without a mask: {missing:,}. Use boxes only: a configuration of Faster R-CNN")
    if turned := facts["turned_images"]:
        lines.append(f"  images turned by their EXIF orientation, as their annotations are: {turned:,}")
    if ambiguous := facts["ambiguous_images"]:
        lines.append(f"  images used as stored, although their EXIF orientation is another: {ambiguous:,}. Look at some")
    return lines


if __name__ == "__main__":
    main()
