"""The objects of one image as bytes: what a record of a prepared set holds beside the encoded image."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Format, height, width, whether the image is turned, number of objects; little-endian without padding.
_HEADER = struct.Struct("<BIIBI")
_FORMAT = 1


class Objects(NamedTuple):
    """The size of an image as annotated, and its objects.

    Attributes:
        height: in pixels, after the image was turned.
        width: the same.
        turn: whether the pixels must be turned as the file's EXIF orientation says.
        boxes: float64 ``[k, 4]``, x1 y1 x2 y2 with inclusive ends.
        labels: int32 ``[k]``, from 1.
        polygons: for each object the parts, float64 ``x y x y ...`` each; an object without a mask has none.
    """

    height: int
    width: int
    turn: bool
    boxes: np.ndarray
    labels: np.ndarray
    polygons: Sequence[Sequence[np.ndarray]]


def pack(objects: Objects) -> bytes:
    """``objects`` as bytes: header, boxes, labels, parts of each object, numbers of each part, all coordinates."""
    parts = [np.asarray(part, "<f8") for polygon in objects.polygons for part in polygon]
    return b"".join(
        [
            _HEADER.pack(_FORMAT, objects.height, objects.width, objects.turn, len(objects.labels)),
            np.asarray(objects.boxes, "<f8").tobytes(),
            np.asarray(objects.labels, "<i4").tobytes(),
            np.asarray([len(polygon) for polygon in objects.polygons], "<i4").tobytes(),
            np.asarray([len(part) for part in parts], "<i4").tobytes(),
            *(part.tobytes() for part in parts),
        ]
    )


def unpack(content: bytes) -> Objects:
    """The inverse of :func:`pack`. Coordinates are views of one array, which may be changed.

    Raises:
        ValueError: ``content`` was not made by :func:`pack`, or is damaged.
    """
    if len(content) < _HEADER.size or content[0] != _FORMAT:
        raise ValueError("the field 'objects' is damaged or of another version")
    _, height, width, turn, count = _HEADER.unpack_from(content)
    place = _HEADER.size

    def take(kind: str, number: int) -> np.ndarray:
        nonlocal place
        start, place = place, place + number * np.dtype(kind).itemsize
        if number < 0 or place > len(content):
            raise ValueError("the field 'objects' is damaged")
        return np.frombuffer(content, kind, number, start).astype(kind[1:])

    boxes, labels, num_parts = take("<f8", 4 * count).reshape(-1, 4), take("<i4", count), take("<i4", count)
    if (num_parts < 0).any():
        raise ValueError("the field 'objects' is damaged")
    lengths = take("<i4", int(num_parts.sum(dtype=np.int64)))
    if (lengths < 0).any():
        raise ValueError("the field 'objects' is damaged")
    coordinates = take("<f8", int(lengths.sum(dtype=np.int64)))
    if place != len(content):
        raise ValueError("the field 'objects' is damaged")
    ends = np.cumsum(lengths).tolist()
    parts = [coordinates[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
    ends = np.cumsum(num_parts).tolist()
    polygons = [parts[end - number : end] for end, number in zip(ends, num_parts.tolist(), strict=True)]
    return Objects(height, width, bool(turn), boxes, labels, polygons)
