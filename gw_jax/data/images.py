"""Images of classifiers on the host, with Pillow: the random crop of training and the centre crop of evaluation.

Pillow, not TensorFlow: evaluation is then byte for byte what PyTorch's transforms give, and training needs no TensorFlow.
The results are uint8. Flip, shift, mixing and normalisation happen on the device: see :mod:`gw_jax.augment`.
"""

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

from gw_jax.data.decoding import open_image, to_uint8

CROP_ATTEMPTS = 10

# Above this a resized image is computed only where the centre crop needs it. 256 pixels high, it is 65,536 wide.
MAX_RESIZED_PIXELS = 1 << 24
# Bits behind the point in the weights of Pillow's filters for 8-bit images.
_WEIGHT_BITS = 22


class RandomNumbers(Protocol):
    """The part of ``numpy.random.Generator`` that is used here."""

    def uniform(self, low: float, high: float) -> float:
        """A number in ``[low, high)``."""
        ...

    def integers(self, low: int, high: int) -> Any:
        """An integer in ``[low, high)``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """Resizing and cropping of an image to its final size.

    Attributes:
        size: edge of the square result in pixels; None keeps the size of images.
        crop: False resizes the whole image to the square. True is usual for ImageNet: a random crop in training; in
            evaluation the shorter edge is resized to ``eval_resize`` and the centre is cut out.
        eval_resize: length of the shorter edge before the centre crop.
        scale: smallest and largest share of the image's area in a random crop.
        ratio: smallest and largest width / height of a random crop.
    """

    size: int | None = None
    crop: bool = False
    eval_resize: int = 256
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


def random_crop_box(
    rng: RandomNumbers, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random box ``(left, top, right, bottom)`` in an image of ``width`` x ``height`` pixels.

    Its area is uniform in ``scale`` times the image's, its width / height log-uniform in ``ratio``, its position uniform.
    After ten boxes that do not fit: the largest centred box whose ratio is in range.

    Args:
        rng: draws the area, the ratio and the position, in this order.
        width: of the image.
        height: of the image.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.

    Source: Szegedy et al., Going deeper with convolutions (CVPR 2015), in the form of torchvision's RandomResizedCrop.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return left, top, left + w, top + h
    aspect = width / height
    w = width if aspect <= ratio[1] else round(height * ratio[1])
    h = height if aspect >= ratio[0] else round(width / ratio[0])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_image(image: bytes | np.ndarray, channels: int, transform: Transform, rng: RandomNumbers | None) -> np.ndarray:
    """Decodes an image (or accepts an array) and resizes it for training.

    Args:
        image: an encoded image, or an array as for :func:`to_uint8`.
        channels: 1, 3 or 4, to which encoded images are converted; arrays keep their own.
        transform: the size, and how it is reached.
        rng: the numbers that choose the crop; may be None where ``transform.crop`` is False.

    Returns:
        uint8 ``[h, w, channels]``.

    Raises:
        ImageTypeError: an array that is not an image.
        Exception: whatever Pillow raises for damaged bytes; ValueError for pixels without a known range, or too many.
    """
    if not transform.crop:
        return eval_image(image, channels, transform)
    assert transform.size is not None
    assert rng is not None
    picture = open_image(image, channels)
    channels = len(picture.getbands())
    width, height = picture.size
    box = random_crop_box(rng, width, height, transform.scale, transform.ratio)
    # Crop first: a resize with a box would let pixels from outside it into its edges.
    return _pixels(_resized(picture.crop(box), (transform.size, transform.size)), channels)


def eval_image(image: bytes | np.ndarray, channels: int, transform: Transform) -> np.ndarray:
    """Decodes an image (or accepts an array) and resizes it for evaluation: uint8 ``[h, w, channels]``.

    Arguments and errors are those of :func:`train_image`.
    """
    if transform.size is None and isinstance(image, np.ndarray):
        return to_uint8(image)
    picture = open_image(image, channels)
    channels = len(picture.getbands())
    if transform.crop:
        assert transform.size is not None
        picture = resize_and_centre_crop(picture, transform.eval_resize, transform.size)
    elif transform.size is not None:
        picture = _resized(picture, (transform.size, transform.size))
    return _pixels(picture, channels)


def resize_and_centre_crop(picture: Any, resize: int, size: int) -> Any:
    """:func:`centre_crop` of :func:`resize_shorter_edge`, in memory that is bounded also for very long images."""
    width, height = _shorter_edge_size(picture.size, resize)
    # Resizing to a smaller size needs no more memory than the image itself.
    if width * height <= MAX_RESIZED_PIXELS or width <= picture.size[0]:
        return centre_crop(resize_shorter_edge(picture, resize), size)
    from PIL import Image

    # As Pillow enlarges: colours weighted by their opacity, and columns before rows.
    mode = "RGBa" if picture.mode == "RGBA" else picture.mode
    columns, rows = (
        _bilinear_weights(old, new, _crop_start(new, size), size)
        for old, new in zip(picture.size, (width, height), strict=True)
    )
    (left, right), (top, bottom) = (
        (min(low for low, _ in taps), max(low + len(weights) for low, weights in taps)) for taps in (columns, rows)
    )
    pixels = np.asarray(picture.crop((left, top, right, bottom)).convert(mode))
    pixels = pixels.reshape(bottom - top, right - left, -1).swapaxes(0, 1)
    pixels = _weighted_rows(pixels, left, columns).swapaxes(0, 1)
    pixels = _weighted_rows(pixels, top, rows)
    cropped = Image.frombytes(mode, (len(columns), len(rows)), pixels.tobytes()).convert(picture.mode)
    # Black outside the resized image.
    full = Image.new(picture.mode, (size, size))
    full.paste(cropped, (max(-_crop_start(width, size), 0), max(-_crop_start(height, size), 0)))
    return full


def _bilinear_weights(old: int, new: int, first: int, count: int) -> list[tuple[int, np.ndarray]]:
    """Of the pixels ``first`` to ``first + count`` of an axis resized from ``old`` to ``new`` pixels, those inside it.

    Each has the first pixel of the old axis that counts, and the weights from there on in units of 2^-22, as in Pillow's
    bilinear filter.
    """
    scale = old / new
    support = max(scale, 1.0)
    taps = []
    for pixel in range(max(first, 0), min(first + count, new)):
        centre = (pixel + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), old)
        weights = np.maximum(1 - np.abs((np.arange(low, high) - centre + 0.5) * (1 / support)), 0)
        taps.append((low, (weights / np.cumsum(weights)[-1] * (1 << _WEIGHT_BITS) + 0.5).astype(np.int64)))
    return taps


def _weighted_rows(pixels: np.ndarray, offset: int, taps: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Weighted means of rows of uint8 ``[h, ...]``, of which the first is number ``offset``."""
    rows = []
    for low, weights in taps:
        part = pixels[low - offset : low - offset + len(weights)].astype(np.int64)
        total = np.tensordot(weights, part, 1) + (1 << (_WEIGHT_BITS - 1))
        rows.append(np.clip(total >> _WEIGHT_BITS, 0, 255).astype(np.uint8))
    return np.stack(rows)


def _shorter_edge_size(size: tuple[int, int], edge: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def resize_shorter_edge(picture: Any, size: int) -> Any:
    """Resizes so that the shorter edge has ``size`` pixels and the longer one ``int(size * longer / shorter)``."""
    return _resized(picture, _shorter_edge_size(picture.size, size))


def centre_crop(picture: Any, size: int) -> Any:
    """The ``size`` x ``size`` pixels in the middle, rounded as torchvision does, and black outside the image."""
    left, top = (_crop_start(edge, size) for edge in picture.size)
    return picture.crop((left, top, left + size, top + size))


def _crop_start(edge: int, size: int) -> int:
    # A crop's start is rounded to even; a black border is smaller at the start.
    return round((edge - size) / 2) if edge >= size else -((size - edge) // 2)


def _resized(picture: Any, size: tuple[int, int]) -> Any:
    """Pillow's bilinear filter, which is antialiased: its support grows with the factor by which an image shrinks."""
    from PIL import Image

    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


def _pixels(picture: Any, channels: int) -> np.ndarray:
    array = np.asarray(picture, np.uint8)
    return array.reshape(*array.shape[:2], channels)
