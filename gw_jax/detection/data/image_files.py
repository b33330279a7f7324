"""The files of annotated images: there, readable, whole, and of the size that the annotations say."""

import concurrent.futures
import hashlib
import os
import pathlib
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from gw_jax.data.decoding import open_encoded
from gw_jax.detection.data.coco import AnnotatedImage
from gw_jax.detection.data.coco_file import display
from gw_jax.errors import DataError, one_line, shown

# The last bytes of a whole file. Others may follow them, or a file may be damaged before them.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"}
# An example of a TFDS set must stay below 2 GB; no image of a permitted size needs as much as this.
_MAX_FILE_BYTES = 1 << 30
_ORIENTATION = 0x0112
# Orientations of EXIF by which height and width change places.
_TURNED = (5, 6, 7, 8)
_MISSING, _UNREADABLE, _OTHER_SIZE = "missing", "unreadable", "of another size"


class ImageFile(NamedTuple):
    """What was found in a file.

    Attributes:
        digest: SHA-256 of the file.
        num_bytes: its size.
        turn: whether its pixels must be turned by the EXIF orientation to be of the size of the annotations.
        ambiguous: whether it has an EXIF orientation of which the size does not tell if the annotations follow it.
        problem: what makes the file unusable, "" for nothing.
        detail: more on the problem.
    """

    digest: bytes
    num_bytes: int
    turn: bool = False
    ambiguous: bool = False
    problem: str = ""
    detail: str = ""


def check_files(images: Sequence[AnnotatedImage], flag: str, num_threads: int | None = None) -> list[ImageFile]:
    """Reads every file once; decodes the header, and all of it only where its end looks unusual.

    Args:
        images: of one split.
        flag: the option that gave them, for messages.
        num_threads: threads that read; None for one per core.

    Raises:
        DataError: files are missing, unreadable, truncated or of another size; the message names the first and counts all.
    """
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        files = list(pool.map(_inspect, images))
    problems = Counter(file.problem for file in files if file.problem)
    if not problems:
        return files
    first, file = next((image, file) for image, file in zip(images, files, strict=True) if file.problem)
    counts = ", ".join(f"{count:,} {problem}" for problem, count in problems.items())
    if problems[_MISSING] == len(files):
        folder = pathlib.Path(str(first.path).removesuffix(first.file_name))
        there = ", ".join(shown(entry.name) for entry in sorted(folder.iterdir())[:3])
        raise DataError(
            f"{flag}: the folder {display(folder)} has none of the {len(files):,} images, the first is "
            f"{shown(first.file_name)}; it holds {there or 'nothing'}. Give the folder to which 'file_name' is relative."
        )
    raise DataError(
        f"{flag}: of {len(files):,} images, files cannot be used: {counts}. The first is {display(first.path)}, image "
        f"{first.image_id} ({file.detail}). Copy or repair the files, or correct the annotations."
    )


def _inspect(image: AnnotatedImage) -> ImageFile:
    try:
        if image.path.stat().st_size > _MAX_FILE_BYTES:
            detail = f"{image.path.stat().st_size:,} bytes; at most {_MAX_FILE_BYTES:,} are read"
            return ImageFile(b"", 0, problem=_UNREADABLE, detail=detail)
        content = image.path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return ImageFile(b"", 0, problem=_MISSING if missing else _UNREADABLE, detail=error.strerror or "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size, orientation = _size_and_orientation(content)
    except Exception as error:  # Pillow raises whatever it meets in damaged bytes.
        detail = one_line(f"{type(error).__name__}: {error}", 100)
        return ImageFile(b"", 0, problem=_UNREADABLE, detail=detail)
    file = ImageFile(hashlib.sha256(content).digest(), len(content))
    if size == (image.height, image.width):
        same = orientation in _TURNED and size[0] != size[1]
        return file._replace(ambiguous=orientation in range(2, 9) and not same)
    if size[::-1] == (image.height, image.width) and orientation in _TURNED:
        return file._replace(turn=True)
    detail = f"{size[1]} x {size[0]} pixels, annotated are {image.width} x {image.height}"
    return file._replace(problem=_OTHER_SIZE, detail=detail)


def _size_and_orientation(content: bytes) -> tuple[tuple[int, int], int]:
    """Height and width as stored, and EXIF's orientation, 1 for none."""
    picture = open_encoded(content)
    # Damage in the middle of a file is found when it is trained on; that of a copy that stopped is found here.
    end = _ENDS.get(picture.format)
    if end is None or not content.endswith(end):
        open_encoded(content).load()
    try:
        orientation = int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Damaged EXIF, which nobody needs otherwise.
        orientation = 1
    return (picture.height, picture.width), orientation
