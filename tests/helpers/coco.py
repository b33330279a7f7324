"""A miniature of COCO: its folders, file names and categories, with a few small images of coloured shapes."""

import json

import numpy as np
from PIL import Image, ImageDraw

# fmt: off
NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
]
# fmt: on
# Numbers from 1 to 90 that are no ids.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORIES = [
    {"id": key, "name": name, "supercategory": "thing"}
    for key, name in zip((key for key in range(1, 91) if key not in GAPS), NAMES, strict=True)
]
SIZES = ((64, 96), (96, 64), (72, 72))


def write_miniature(directory, num_train=20, num_val=6):
    """Writes ``annotations/instances_{train,val}2017.json``, ``train2017`` and ``val2017`` below ``directory``.

    Of each split, the second image has no objects, and the third one has a crowd, an RLE, beside its objects.

    Returns:
        The arguments of the command that prepares them: ``["--train", JSON, IMAGES, "--eval", JSON, IMAGES]``.
    """
    (directory / "annotations").mkdir(parents=True)
    arguments = []
    for flag, split, count, seed in (("--train", "train2017", num_train, 0), ("--eval", "val2017", num_val, 1)):
        (directory / split).mkdir()
        path = directory / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(_write_images(directory / split, count, np.random.default_rng(seed))))
        arguments += [flag, str(path), str(directory / split)]
    return arguments


def _write_images(folder, count, rng):
    images, annotations = [], []
    # As in COCO, ids are not contiguous and not in order.
    for index, image_id in enumerate(rng.permutation(580_000)[:count].tolist()):
        height, width = SIZES[index % len(SIZES)]
        picture = Image.fromarray(rng.integers(100, 130, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(picture)
        for _ in range(0 if index == 1 else int(rng.integers(1, 4))):
            annotations.append(_object(draw, rng, len(annotations) + 1, image_id, height, width))
        if index == 2:
            annotations.append(_crowd(len(annotations) + 1, image_id, height, width))
        name = f"{image_id:012}.jpg"
        picture.save(folder / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width, "license": 1})
    return {
        "info": {"description": "a miniature of COCO"},
        "licenses": [{"id": 1, "name": "none", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }


def _object(draw, rng, key, image_id, height, width):
    """A triangle, or a rectangle in two parts, whose colour is that of its category."""
    number = int(rng.integers(len(CATEGORIES)))
    w, h = rng.integers(20, 40, 2) + 0.5
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    if number % 2:
        parts = [[x, y, x + w, y + h / 2, x, y + h]]
    else:
        parts = [[x, y, x + w / 3, y, x + w / 3, y + h, x, y + h], [x + w / 2, y, x + w, y, x + w, y + h, x + w / 2, y + h]]
    parts = [np.round(part, 2).tolist() for part in parts]
    for part in parts:
        draw.polygon(part, fill=tuple(np.random.default_rng(number).integers(0, 256, 3).tolist()))
    return {
        "id": key,
        "image_id": image_id,
        "category_id": CATEGORIES[number]["id"],
        "iscrowd": 0,
        "bbox": [round(float(value), 2) for value in (x, y, w, h)],
        "area": round(float(w * h * (0.5 if number % 2 else 5 / 6)), 2),
        "segmentation": parts,
    }


def _crowd(key, image_id, height, width):
    """The upper left quarter."""
    half = height // 2
    counts = [0] + [half, height - half] * (width // 2) + [height * (width - width // 2)]
    counts[-2:] = [counts[-2] + counts[-1]]
    return {
        "id": key,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 1,
        "bbox": [0, 0, width // 2, half],
        "area": half * (width // 2),
        "segmentation": {"size": [height, width], "counts": counts},
    }


def write_own(directory, change=None, *, split="train"):
    """A small folder of one's own, of two images, with the categories 7 "cat" and 3 "dog".

    Args:
        directory: gets ``SPLIT.json`` and the folder ``SPLIT``.
        change: is called with the content of the file before it is written, and may return another.
        split: the name.

    Returns:
        The JSON file and the folder.
    """
    folder = directory / split
    folder.mkdir(parents=True)
    for name, size, seed in (("a.png", (40, 30), 1), ("b.jpg", (24, 36), 2)):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    square = [2, 3, 12, 3, 12, 13, 2, 13]
    content = {
        "images": [
            {"id": 20, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 10, "file_name": "b.jpg", "width": 24, "height": 36},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 20, "category_id": 7, "bbox": [2, 3, 10, 10], "segmentation": [square], "area": 100},
            {"id": 2, "image_id": 10, "category_id": 3, "bbox": [2.5, 3, 10, 10.5], "segmentation": [square]},
        ],
    }
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    if change is not None:
        changed = change(content)
        content = content if changed is None else changed
    path = directory / f"{split}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path, folder
