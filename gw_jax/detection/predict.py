"""Finds objects in images: ``python -m gw_jax.detection.predict MODEL IMAGE... [options]``.

MODEL is the directory of a detector (of ``config.mode=export``, ``gw_jax.detection.convert`` or ``save_detector``), or the
work directory of a run, of which the best checkpoint is taken. IMAGE is a file, a folder or a pattern such as "*.jpg". The
pictures in the directory of ``--out`` have boxes, names, scores and masks. An image that is stored turned, as telephones
do it, is turned first, and boxes are those of the turned image.
"""

import argparse
import errno
import glob
import itertools
import json
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gw_jax.data.decoding import open_image
from gw_jax.detection.coco_results import Result, coco_results, original_boxes
from gw_jax.detection.description import Description, describe
from gw_jax.detection.detections import Detections
from gw_jax.detection.draw import DrawnObject, Region, draw_objects
from gw_jax.detection.paste import paste_region
from gw_jax.detection.postprocess import SCORE_THRESHOLD
from gw_jax.detection.predictor import Predictor
from gw_jax.detection.run_models import is_run, load_run
from gw_jax.detection.saved import load_detector
from gw_jax.errors import ConfigError, DataError, UserError, one_line, shown
from gw_jax.files import replacing, write_atomically
from gw_jax.models.hub import is_hub_address
from gw_jax.models.saved_files import DETECTOR, read_config
from gw_jax.train.state import activation_dtype

# Files of a folder that are taken for images.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
DEFAULT_OUT = "predictions"
MAX_SIDE = 8192  # pixels of the network's input


def main(arguments: list[str] | None = None) -> int:
    """Does what the command line says. Returns the exit code: 1 if an image could not be read, too."""
    args = _parser().parse_args(arguments)
    try:
        return _predict(args)
    except (UserError, OSError) as error:
        print(f"error: {one_line(str(error), 2000)}", file=sys.stderr)
        return 1


def load_model(directory: str, min_side: int | None = None, max_side: int | None = None) -> Predictor:
    """The detector in ``directory``, or of the run there, with its own resize rule or another one.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: sides that do not fit each other.
    """
    dtype = activation_dtype("auto")
    path = pathlib.Path(directory).expanduser()
    if not is_hub_address(directory) and is_run(path):
        detector, content, step = load_run(path, dtype)
        print(f"the checkpoint of step {step} of {path}", file=sys.stderr)
    else:
        if is_hub_address(directory):
            from gw_jax.models.hub import download

            path = pathlib.Path(download(directory))
        content, detector = read_config(path, DETECTOR), load_detector(path, dtype=dtype)
    found = describe(content, detector.arguments["num_classes"], directory)
    sides = (min_side or found.min_side, max_side or max(found.max_side, min_side or 0))
    if sides[0] > sides[1]:
        raise ConfigError(f"--min_side={sides[0]} is larger than --max_side={sides[1]}; the shorter side comes first.")
    return Predictor(detector, Description(found.pixels, *sides, found.categories))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gw_jax.detection.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="directory of a detector, or work directory of a run")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="file, folder or pattern")
    parser.add_argument(
        "--threshold", type=_score, default=0.5, help=f"lowest score of an object, {SCORE_THRESHOLD} to 1 (0.5)"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help=f"directory of the pictures ({DEFAULT_OUT}, without --json)"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="results in COCO's format, with file names")
    parser.add_argument("--min_side", type=_pixels, metavar="PIXELS", help="shorter side of the network's input")
    parser.add_argument("--max_side", type=_pixels, metavar="PIXELS", help="largest longer side of the network's input")
    return parser


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not SCORE_THRESHOLD <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text} is no score between {SCORE_THRESHOLD}, below which a detector drops objects, and 1"
        )
    return value


def _pixels(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_SIDE):
        raise argparse.ArgumentTypeError(f"{text} is no number of pixels from 1 to {MAX_SIDE}")
    return int(text)


def _predict(args: argparse.Namespace) -> int:
    paths = find_images(args.images)
    out = args.out or (None if args.json else pathlib.Path(DEFAULT_OUT))
    predictor = load_model(args.model, args.min_side, args.max_side)
    _check_writable(out, args.json)
    names, results, failed = _names(paths), [], 0
    for image_id, path in _image_ids(paths):
        try:
            picture = open_image(path.read_bytes(), 3, turn=True)
        except Exception as error:  # Decoders raise whatever they meet in damaged bytes.
            print(f"error: {shown(str(path))} cannot be read: {one_line(str(error), 200)}", file=sys.stderr)
            failed += 1
            continue
        found, size = predictor(picture)
        found = found._replace(present=found.present & (found.scores >= args.threshold))
        drawn = _objects(found, size, picture, predictor.description)
        listed = ", ".join(item.text for item in drawn[:10]) + (", ..." if len(drawn) > 10 else "")
        print(f"{one_line(str(path), 200)}: {len(drawn)} object{'' if len(drawn) == 1 else 's'}"
              f"{': ' if drawn else ''}{listed}", flush=True)  # fmt: skip
        if args.json:
            ids = [category.id for category in predictor.description.categories]
            found_here = coco_results(found, size, (picture.height, picture.width), image_id, ids)
            results += [{**result, "file_name": str(path)} for result in found_here]
        if out is not None:
            with replacing(out / names[path]) as temporary:
                kind = "JPEG" if names[path].endswith(".jpg") else "PNG"
                draw_objects(picture, drawn).save(temporary, kind, quality=92)
    if args.json:
        write_atomically(args.json, _json(results))
    if out is not None and failed < len(paths):
        print(f"pictures in {out}", file=sys.stderr)
    return 1 if failed else 0


def find_images(arguments: list[str]) -> list[pathlib.Path]:
    """The files that the command line names, each once, those of a folder and of a pattern by name.

    Raises:
        DataError: an argument names nothing, or a folder without images.
    """
    found: dict[pathlib.Path, None] = {}
    for argument in arguments:
        path = pathlib.Path(argument).expanduser()
        if os.path.isdir(path):
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise DataError(f"The folder {shown(argument)} has no images ({', '.join(SUFFIXES)}).")
        elif os.path.lexists(path):
            files = [path]
        else:
            files = sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
            if not files:
                raise DataError(
                    f"There is no file {shown(argument)}; give images, folders or a pattern such as 'photos/*.jpg'."
                )
        found |= dict.fromkeys(files)
    return list(found)


def _check_writable(out: pathlib.Path | None, file: pathlib.Path | None) -> None:
    """Raises ConfigError where nothing can be written, before anything is computed."""
    for flag, given, directory in (("--out", out, out), ("--json", file, file.parent if file else None)):
        if given is None or directory is None:
            continue
        try:
            if given is out:
                directory.mkdir(parents=True, exist_ok=True)
            elif given.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a directory")
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"{flag}={shown(str(given))} cannot be written: {reason}. Give another place.") from error


def _image_ids(paths: list[pathlib.Path]) -> Iterator[tuple[int, pathlib.Path]]:
    """The files with their ids: those in the names of COCO's files, 000000000139.jpg, else 1, 2, ...."""
    stems = [path.stem for path in paths]
    numbered = all(stem.isdecimal() and stem.isascii() and len(stem) < 19 for stem in stems)
    ids = [int(stem) for stem in stems] if numbered else []
    return zip(ids if len(set(ids)) == len(paths) else range(1, len(paths) + 1), paths, strict=True)


def _names(paths: list[pathlib.Path]) -> dict[pathlib.Path, str]:
    """A name for the picture of each file: its own, with a number where two have the same."""
    names: dict[pathlib.Path, str] = {}
    for path in paths:
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        candidates = itertools.chain([path.stem], (f"{path.stem}-{number}" for number in itertools.count(2)))
        names[path] = next(f"{name}{suffix}" for name in candidates if f"{name}{suffix}" not in names.values())
    return names


def _objects(found: Detections, size: tuple[int, int], picture: Any, description: Description) -> list[DrawnObject]:
    """What is drawn of the detections: by falling score, in the pixels of the picture."""
    original = (picture.height, picture.width)
    boxes = original_boxes(found.boxes, size, original)

    def mask(row: int) -> Callable[[], Region] | None:
        masks = found.masks
        return None if masks is None else lambda: paste_region(masks[row], boxes[row], original)

    rows = np.flatnonzero(found.present)
    rows = rows[np.argsort(-np.asarray(found.scores)[rows], kind="stable")]
    return [
        DrawnObject(
            boxes[row].tolist(),
            f"{one_line(description.categories[int(found.labels[row]) - 1].name, 40)} {found.scores[row]:.2f}",
            int(found.labels[row]),
            mask(row),
        )
        for row in rows.tolist()
    ]


def _json(results: list[Result]) -> str:
    return "[" + ",".join(f"\n{json.dumps(result)}" for result in results) + "\n]\n"


if __name__ == "__main__":
    sys.exit(main())
