"""Images on the host, with Pillow: decoding, the random crop of training and the centre crop of evaluation.

Everything comes out as uint8; what needs no neighbouring file (flip, shift, mixing, normalisation) happens on the device.
"""

import dataclasses
import io
import math
from typing import Any, Protocol

import numpy as np

CROP_ATTEMPTS = 10


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
    """How an image gets its final size.

    Attributes:
        size: edge of the square result in pixels; None leaves images as they are.
        crop: False resizes the whole image to the square. True is what ImageNet is trained with: a random crop in
            training; in evaluation the shorter edge is resized to ``eval_resize`` and the centre is cut out.
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
    """A random box ``(left, top, right, bottom)`` in an image of ``width`` x ``height``.

    Its area is uniform in ``scale`` times the image's, its width / height log-uniform in ``ratio``, its place uniform.
    After ten boxes that do not fit: the largest centred box whose ratio is in range.

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
    """Decodes (or takes) an image and brings it to its final size for training: uint8 ``[h, w, channels]``."""
    if not transform.crop:
        return eval_image(image, channels, transform)
    assert transform.size is not None
    assert rng is not None
    picture = open_image(image, channels)
    channels = len(picture.getbands())
    width, height = picture.size
    box = random_crop_box(rng, width, height, transform.scale, transform.ratio)
    # Cut first: a resize with a box would let pixels from outside it into its edges.
    return _pixels(_resized(picture.crop(box), (transform.size, transform.size)), channels)


def eval_image(image: bytes | np.ndarray, channels: int, transform: Transform) -> np.ndarray:
    """Decodes (or takes) an image and brings it to its final size for evaluation: uint8 ``[h, w, channels]``."""
    if transform.size is None and isinstance(image, np.ndarray):
        return np.asarray(image, np.uint8)
    picture = open_image(image, channels)
    channels = len(picture.getbands())
    if transform.crop:
        assert transform.size is not None
        picture = centre_crop(resize_shorter_edge(picture, transform.eval_resize), transform.size)
    elif transform.size is not None:
        picture = _resized(picture, (transform.size, transform.size))
    return _pixels(picture, channels)


def open_image(image: bytes | np.ndarray, channels: int) -> Any:
    """The Pillow image of encoded bytes or of a uint8 array, in grey for one channel, in colour for three."""
    from PIL import Image

    if isinstance(image, np.ndarray):
        return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture = Image.open(io.BytesIO(image))
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def resize_shorter_edge(picture: Any, size: int) -> Any:
    """Resizes so that the shorter edge has ``size`` pixels and the longer one ``int(size * longer / shorter)``."""
    width, height = picture.size
    if width <= height:
        return _resized(picture, (size, int(size * height / width)))
    return _resized(picture, (int(size * width / height), size))


def centre_crop(picture: Any, size: int) -> Any:
    """The ``size`` x ``size`` pixels in the middle, rounded as torchvision does; what lies outside is black."""
    left, top = (_crop_start(edge, size) for edge in picture.size)
    return picture.crop((left, top, left + size, top + size))


def _crop_start(edge: int, size: int) -> int:
    # A cut is rounded to even, black borders are smaller at the start.
    return round((edge - size) / 2) if edge >= size else -((size - edge) // 2)


def _resized(picture: Any, size: tuple[int, int]) -> Any:
    """Pillow's bilinear filter, which is antialiased: its support grows with the factor by which an image shrinks."""
    from PIL import Image

    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


def _pixels(picture: Any, channels: int) -> np.ndarray:
    array = np.asarray(picture, np.uint8)
    return array.reshape(*array.shape[:2], channels)
