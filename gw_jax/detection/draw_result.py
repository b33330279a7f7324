"""``detections.png``: ground truth beside detections, for a few images of an evaluation."""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gw_jax.data.decoding import open_image
from gw_jax.detection.coco_results import Result
from gw_jax.detection.data.scenes import Scene, Scenes
from gw_jax.detection.detection_files import stored_detections
from gw_jax.detection.draw import DrawnObject, Region, draw_objects, font
from gw_jax.detection.rle import decode_mask
from gw_jax.errors import DataError, one_line
from gw_jax.files import replacing

PICTURE = "detections.png"
_NUM_IMAGES, _PER_ROW = 6, 2
_PANEL, _GAP = 300, 8  # pixels
_THRESHOLD = 0.5


def draw_result(scenes: Scenes, workdir: pathlib.Path) -> pathlib.Path | None:
    """Draws the detections of the last evaluation beside ground truth into ``detections.png``; returns its path.

    Detections with scores from 0.5 on are drawn, in images at equal distances in the set, preferably such with objects.

    Args:
        scenes: the set.
        workdir: the work directory. Without stored detections nothing is drawn.

    Raises:
        DataError: the stored detections cannot be read.
        OSError: the picture cannot be written.
    """
    stored = stored_detections(workdir)
    if not stored:
        return None
    *_, (step, path) = stored.items()
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({one_line(str(error), 200)}), so {PICTURE} was not drawn.") from error
    source = scenes.evaluation
    candidates = np.flatnonzero(source.num_objects) if np.any(source.num_objects) else np.arange(len(source))
    chosen = candidates[np.linspace(0, len(candidates) - 1, min(_NUM_IMAGES, len(candidates))).round().astype(int)]
    names = {category.id: (label, category.name) for label, category in enumerate(scenes.categories, 1)}
    panels, highest, drawn = [], 0.0, 0
    for place in chosen.tolist():
        try:
            scene = source[place]
            picture = open_image(scene.image, 3, turn=scene.turn)
        except Exception:  # Decoders raise whatever they meet; the evaluation has named this image already.
            continue
        own = [result for result in results if result["image_id"] == scene.image_id]
        highest = max([highest, *(result["score"] for result in own)])
        own = sorted((r for r in own if r["score"] >= _THRESHOLD), key=lambda result: -result["score"])
        drawn += len(own)
        panels.append((draw_objects(picture, _truth(scene, scenes.categories)), draw_objects(picture, _found(own, names))))
    if not panels:
        return None
    # Early in a training the right halves would be empty without a word.
    none = "" if drawn else f": none here, the highest score is {highest:.2f}"
    sheet = _sheet(panels, f"step {step}{none}")
    with replacing(workdir / PICTURE) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return workdir / PICTURE


def _truth(scene: Scene, categories: Sequence[Any]) -> list[DrawnObject]:
    def of(parts: list[np.ndarray]) -> Region:
        from PIL import Image, ImageDraw

        # Each part on its own: inside of several is inside.
        whole = Image.new("1", (scene.width, scene.height))
        for part in parts:
            ImageDraw.Draw(whole).polygon(part.tolist(), fill=1)
        return np.asarray(whole), slice(0, scene.height), slice(0, scene.width)

    return [
        DrawnObject(box.tolist(), categories[label - 1].name, int(label), functools.partial(of, parts) if parts else None)
        for box, label, parts in zip(scene.boxes, scene.labels, scene.polygons, strict=True)
    ]


def _found(results: Sequence[Result], names: dict[int, tuple[int, str]]) -> list[DrawnObject]:
    def of(runs: dict[str, Any]) -> Region:
        height, width = runs["size"]
        return decode_mask(runs, height, width), slice(0, height), slice(0, width)

    objects = []
    for result in results:
        (x, y, w, h), (label, name), runs = result["bbox"], names[result["category_id"]], result.get("segmentation")
        text = f"{name} {result['score']:.2f}"
        mask = functools.partial(of, runs) if runs else None
        objects.append(DrawnObject((x, y, x + w - 1, y + h - 1), text, label, mask))
    return objects


def _sheet(panels: Sequence[tuple[Any, Any]], title: str) -> Any:
    """Pairs of pictures in rows, each row as high as its highest picture, under one line of text."""
    from PIL import Image, ImageDraw

    pairs = []
    for panel in panels:
        ratio = _PANEL / max(panel[0].size)
        size = (max(round(panel[0].width * ratio), 1), max(round(panel[0].height * ratio), 1))
        pairs.append([picture.resize(size, Image.Resampling.LANCZOS) for picture in panel])
    rows = [pairs[start : start + _PER_ROW] for start in range(0, len(pairs), _PER_ROW)]
    letters = font(16)
    header = 16 + 2 * _GAP
    width = _PER_ROW * (2 * _PANEL + 2 * _GAP) + _GAP
    height = header + sum(max(pair[0].height for pair in row) + _GAP for row in rows)
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    text = f"Ground truth (left) and detections with scores from {_THRESHOLD} on (right), {title}"
    ImageDraw.Draw(sheet).text((_GAP, _GAP), text, fill=(0, 0, 0), font=letters)
    top = header
    for row in rows:
        for place, pair in enumerate(row):
            left = _GAP + place * (2 * _PANEL + 2 * _GAP)
            for offset, picture in zip((0, _PANEL + _GAP // 2), pair, strict=True):
                sheet.paste(picture, (left + offset, top))
        top += max(pair[0].height for pair in row) + _GAP
    return sheet
