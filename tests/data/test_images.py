import io
import itertools
import random

import numpy as np
import pytest
from PIL import Image

from gw_jax.data import examples
from gw_jax.data.images import (
    Transform,
    eval_image,
    random_crop_box,
    train_image,
)
from gw_jax.data.shards import ProcessShard
from tests.helpers.images import image_file

SIZES = {
    "landscape": (500, 375),
    "portrait": (333, 500),
    "square": (300, 300),
    "wide": (400, 61),
    "almost": (257, 256),
    "small": (40, 30),
    "tiny": (3, 5),
}


# Shorter edge and crop; the last ones cut out more than there is.
EDGES = [(256, 224), (36, 32), (8, 7), (224, 224), (20, 33), (21, 64)]


SCALE, RATIO = Transform().scale, Transform().ratio


def reference_eval(file, resize, crop, mode="RGB"):
    """torchvision's Resize(resize) and CenterCrop(crop) of a PIL image, from their documentation."""
    picture = Image.open(io.BytesIO(file)).convert(mode)
    width, height = picture.size
    longer = int(resize * max(width, height) / min(width, height))
    size = (resize, longer) if width <= height else (longer, resize)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).reshape(size[1], size[0], -1)
    for axis in (0, 1):
        missing = max(crop - pixels.shape[axis], 0)
        margins = [(0, 0), (0, 0), (0, 0)]
        margins[axis] = (missing // 2, (missing + 1) // 2)
        pixels = np.pad(pixels, margins)
        start = round((pixels.shape[axis] - crop) / 2.0)
        pixels = np.take(pixels, range(start, start + crop), axis)
    return pixels


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_evaluation_resizes_and_crops_as_torchvision_does(mode, size):
    file = image_file(mode, size)
    for resize, crop in EDGES:
        image = eval_image(file, 3, Transform(size=crop, crop=True, eval_resize=resize))
        assert (image.shape, image.dtype) == ((crop, crop, 3), np.uint8)
        assert np.array_equal(image, reference_eval(file, resize, crop)), (resize, crop)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_data_sets_give_one_channel(mode):
    file = image_file(mode, (50, 41))
    image = eval_image(file, 1, Transform(size=24, crop=True, eval_resize=28))
    assert image.shape == (24, 24, 1)
    assert np.array_equal(image, reference_eval(file, 28, 24, mode="L"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_arrays_are_processed_like_files(mode):
    file = image_file(mode, (50, 41))
    pixels = np.asarray(Image.open(io.BytesIO(file))).reshape(41, 50, -1)
    channels = pixels.shape[-1]
    transform = Transform(size=24, crop=True, eval_resize=28)
    assert np.array_equal(eval_image(pixels, channels, transform), eval_image(file, channels, transform))
    crops = [train_image(image, channels, transform, np.random.default_rng(0)) for image in (pixels, file)]
    assert np.array_equal(*crops)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
def test_training_crops_before_resizing(mode):
    file = image_file(mode, (150, 110))
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    for seed, size in itertools.product(range(10), (24, 64, 224)):
        box = random_crop_box(np.random.default_rng(seed), 150, 110, SCALE, RATIO)
        expected = np.asarray(picture.crop(box).resize((size, size), Image.Resampling.BILINEAR))
        image = train_image(file, 3, Transform(size=size, crop=True), np.random.default_rng(seed))
        assert image.dtype == np.uint8
        assert np.array_equal(image, expected), (seed, size)


def reference_boxes(rng, count, width, height):
    """Left, top, width and height of ``count`` boxes as torchvision's RandomResizedCrop draws them."""
    boxes, drawn = np.empty((count, 4), int), np.zeros(count, bool)
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE, count)
        aspect = np.exp(rng.uniform(*np.log(RATIO), count))
        w, h = np.rint(np.sqrt(area * aspect)).astype(int), np.rint(np.sqrt(area / aspect)).astype(int)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height) & ~drawn
        top, left = (np.floor(rng.random(count) * (room + 1)).astype(int) for room in (height - h, width - w))
        boxes[fits] = np.stack([left, top, w, h], axis=1)[fits]
        drawn |= fits
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    boxes[~drawn] = (width - w) // 2, (height - h) // 2, w, h
    return boxes


def distance(first, second):
    """The Kolmogorov-Smirnov statistic of two samples: the largest difference of their distribution functions."""
    first, second = np.sort(first), np.sort(second)
    return max(
        np.abs(np.searchsorted(first, at, "right") / len(first) - np.searchsorted(second, at, "right") / len(second)).max()
        for at in (first, second)
    )


def quantities(boxes, width, height):
    left, top, w, h = np.asarray(boxes).T
    return {"left": left, "top": top, "width": w, "height": h, "area": w * h / (width * height), "aspect": w / h}


def assert_same_distribution(boxes, width, height):
    expected = quantities(reference_boxes(np.random.default_rng(1), len(boxes), width, height), width, height)
    # Samples of one continuous distribution exceed it once in 100,000 times; of one in whole numbers less often.
    bound = np.sqrt(np.log(2 / 1e-5) / len(boxes))
    for name, sample in quantities(boxes, width, height).items():
        assert distance(sample, expected[name]) < bound, name


class QuickNumbers(random.Random):
    """The methods of NumPy's generator that are used, several times as fast for single numbers."""

    integers = random.Random.randrange


def draw(count, width, height):
    rng = QuickNumbers(0)
    corners = np.array([random_crop_box(rng, width, height, SCALE, RATIO) for _ in range(count)])
    assert (corners[:, :2] >= 0).all()
    assert (corners[:, 2:] <= (width, height)).all()
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


# In the second image about a quarter of the boxes are the centred ones that follow ten that do not fit.
@pytest.mark.parametrize(
    ("width", "height", "count"), [pytest.param(500, 375, 1_000_000, marks=pytest.mark.slow), (420, 100, 100_000)]
)
def test_crops_have_the_distribution_of_random_resized_crop(width, height, count):
    assert_same_distribution(draw(count, width, height), width, height)


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 60), (460, 0, 80, 60)), ((60, 1000), (0, 460, 60, 80)), ((1, 1), (0, 0, 1, 1))]
)
def test_the_largest_centred_box_is_the_fallback(size, box):
    assert set(map(tuple, draw(300, *size).tolist())) == {box}


def test_crops_by_position_are_distributed_like_those_of_one_generator(monkeypatch):
    corners = []

    def box_instead_of_image(image, channels, transform, rng):
        corners.append(random_crop_box(rng, 500, 375, transform.scale, transform.ratio))
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(examples, "train_image", box_instead_of_image)
    load = examples.TrainExamples(
        source=[{"image": None, "label": 0}],
        order=np.zeros(20_000, int),
        shard=ProcessShard(batch_size=8, first=0, size=8),
        num_classes=None,
        transform=Transform(size=224, crop=True),
        channels=3,
        seed=3,
    )
    for position in range(20_000):
        load(position)
    corners = np.array(corners)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    assert_same_distribution(boxes, 500, 375)
    # Neighbours have nothing to do with each other.
    offset = boxes[:, :2] / (np.array([501, 376]) - boxes[:, 2:])
    assert abs(np.corrcoef(offset[:-1, 0], offset[1:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(offset[:, 0], offset[:, 1])[0, 1]) < 0.03
