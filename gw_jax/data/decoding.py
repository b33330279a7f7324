"""Encoded images and arrays as images of Pillow, with 8 bits per channel."""

import io
from typing import Any

import numpy as np

from gw_jax.errors import DataError

# Only formats that Pillow decodes in this process: for EPS it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
# Pillow's modes by number of channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# A small file can claim any size. The edge is JPEG's limit, the product the one above which Pillow warns.
MAX_EDGE, MAX_PIXELS = 65_535, 89_478_485


class ImageTypeError(DataError):
    """An array whose type or channels cannot be an image; all examples of its set share it."""


def to_uint8(array: np.ndarray) -> np.ndarray:
    """An image as uint8 ``[h, w, c]``: uint8 unchanged, uint16 and bool scaled from their range to 0 to 255.

    Accepts ``[h, w, c]`` or ``[h, w]``.

    Raises:
        ImageTypeError: another type, whose range is not known, or another number of axes.
        ValueError: there are no pixels.
    """
    if array.ndim not in (2, 3):
        raise ImageTypeError(f"arrays of shape {array.shape} are no images; [height, width, channels] is needed.")
    if 0 in array.shape:
        raise ValueError(f"an image without pixels, of shape {array.shape}")
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise ImageTypeError(
        f"arrays of type {array.dtype} have no known range; convert the images to uint8 (0 to 255) or uint16 (0 to 65535)."
    )


def open_image(image: bytes | np.ndarray, channels: int, *, turn: bool = False) -> Any:
    """The Pillow image of encoded bytes, with 1, 3 or 4 ``channels`` of 8 bits, or of an array with its own channels.

    Args:
        image: an encoded image, or an array as for :func:`to_uint8`.
        channels: 1, 3 or 4, to which encoded images are converted; arrays keep their own.
        turn: whether an encoded image is turned and mirrored as its EXIF data say.

    Raises:
        ImageTypeError: an array that is not an image, or another number of channels.
        Exception: as for :func:`open_encoded`.
    """
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        array = to_uint8(image)
        if array.shape[-1] not in MODES:
            raise ImageTypeError(
                f"arrays of shape {array.shape} have {array.shape[-1]} channels; 1, 3 or 4 can be resized."
            )
        return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    if channels not in MODES:
        raise ImageTypeError(f"encoded images can be read with 1, 3 or 4 channels, not with {channels}.")
    picture = open_encoded(image)
    if turn:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray(to_uint8(np.asarray(picture).astype(np.uint16))[..., 0])
    mode = MODES[channels]
    return picture if picture.mode == mode else picture.convert(mode)


def open_encoded(content: bytes) -> Any:
    """The Pillow image of encoded bytes in its own mode, of which only the header was read.

    Raises:
        Exception: whatever Pillow raises for damaged bytes; ValueError for pixels without a known range, or too many.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture: Any = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"no image in one of the formats {', '.join(FORMATS)}") from None
    width, height = picture.size
    if max(width, height) > MAX_EDGE or width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; at most {MAX_PIXELS:,} are read, and {MAX_EDGE:,} per edge")
    if picture.mode in ("I", "F"):
        kind = "floating-point numbers" if picture.mode == "F" else "32-bit integers"
        raise ValueError(f"pixels that are {kind} have no known range; 8 or 16 bits are read")
    return picture
