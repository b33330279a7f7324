"""A file of annotations in COCO's format: its JSON, categories and images, checked."""

import contextlib
import gc
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from gw_jax.errors import DataError, one_line, shown

# JPEG's limit.
_MAX_EDGE = 65_535
_LISTS = ("images", "annotations", "categories")


class Category(NamedTuple):
    """A class of objects: its id in the annotations, which need not be contiguous, and its name."""

    id: int
    name: str


class ImageEntry(NamedTuple):
    """An image of the file: its id, its path, and its size in pixels."""

    id: int
    file_name: str
    path: pathlib.Path
    height: int
    width: int


class CocoFile:
    """The content of a file of annotations and the folder of its images.

    Args:
        path: of the JSON file.
        folder: of the images.
        flag: the option that gave both, for messages.

    Attributes:
        path: of the JSON file.
        digest: SHA-256 of the file, hexadecimal.
        categories: in ascending order of their ids.
        images: by their ids.
        annotations: as the file has them, unchecked.

    Raises:
        DataError: the file or the folder cannot be read, or the file has no images, categories or annotations in the
            format of COCO.
    """

    def __init__(self, path: pathlib.Path, folder: pathlib.Path, flag: str):
        self.path = path
        if not folder.is_dir():
            problem = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"{flag} {display(path)} {display(folder)}: the folder of images {problem}.")
        self.digest, content = _read(path, flag)
        lists: dict[str, Any] = {name: content.get(name) for name in _LISTS}
        if wrong := [name for name, value in lists.items() if not isinstance(value, list)]:
            keys = ", ".join(map(shown, list(content)[:8]))
            raise DataError(
                f"{flag} {display(path)} is not in COCO's format: it has no list {wrong[0]!r}, only {keys or 'nothing'}. "
                "Needed are the lists 'images', 'annotations' and 'categories', as in instances_train2017.json."
            )
        self.categories = tuple(sorted(self._categories(lists["categories"])))
        self.images = self._images(lists["images"], folder)
        self.annotations: list[Any] = content.pop("annotations")

    def _categories(self, entries: list[Any]) -> Iterator[Category]:
        ids, names = set(), set()
        for entry in entries:
            key, name = fields_of(entry, "id", "name")
            if not is_id(key) or not _is_name(name):
                self.refuse(
                    f"has the category {shown(entry)}; a category has an integer 'id' and a 'name', which is printable and "
                    "without blanks at its ends"
                )
            if key in ids or name in names:
                self.refuse(f"has two categories with the {f'id {key}' if key in ids else f'name {shown(name)}'}")
            ids.add(key)
            names.add(name)
            yield Category(key, name)
        if not ids:
            self.refuse("has no categories")

    def _images(self, entries: list[Any], folder: pathlib.Path) -> dict[int, ImageEntry]:
        images: dict[int, ImageEntry] = {}
        problems = Problems(self.path, "images")
        for number, entry in enumerate(entries):
            key, name, height, width = fields_of(entry, "id", "file_name", "height", "width")
            where = f"image {key}"
            if not is_id(key):
                problems.add("have no integer 'id'", f"number {number}: {shown(entry)}")
            elif key in images:
                problems.add("have the id of another one", where)
            elif not isinstance(name, str) or not name or "\0" in name:
                problems.add("have no 'file_name'", where)
            elif pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
                problems.add("have a 'file_name' outside of the folder of images", f"{where}: {shown(name)}")
            elif not all(type(edge) is int and 0 < edge <= _MAX_EDGE for edge in (height, width)):
                problems.add(
                    f"have no 'height' and 'width' from 1 to {_MAX_EDGE:,}", f"{where}: {shown(height)} x {shown(width)}"
                )
            else:
                images[key] = ImageEntry(key, name, folder / name, height, width)
        problems.raise_first()
        if not images:
            self.refuse("has no images")
        return images

    def refuse(self, what: str) -> NoReturn:
        """Raises DataError about this file."""
        raise DataError(f"{display(self.path)} {what}. Correct the file, or export it again.")


class Problems:
    """Counts entries of a file that make it unusable, by problem, and names the first of each."""

    def __init__(self, path: pathlib.Path, kind: str):
        self._path, self._kind = path, kind
        self._found: dict[str, list[Any]] = {}

    def add(self, problem: str, where: str) -> None:
        """Adds an entry with ``problem``, a plural form."""
        self._found.setdefault(problem, [where, 0])[1] += 1

    def raise_first(self) -> None:
        """Raises DataError if there is any problem."""
        for problem, (where, count) in self._found.items():
            others = f" (and {len(self._found) - 1} other kinds of problems)" if len(self._found) > 1 else ""
            raise DataError(
                f"{display(self._path)}: {count:,} {self._kind} {problem}, the first is {where}{others}. Correct the file, "
                "or export it again."
            )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value == value.strip() and value.isprintable()


def fields_of(entry: Any, *names: str) -> list[Any]:
    """Values of an object of JSON, None for those that it does not have; all None for anything else."""
    return [entry.get(name) if isinstance(entry, dict) else None for name in names]


def is_id(value: Any) -> bool:
    """Whether ``value`` is an integer of 64 bits."""
    return type(value) is int and abs(value) < 1 << 63


def display(path: pathlib.Path) -> str:
    """``path`` in messages."""
    return one_line(str(path).encode(errors="surrogateescape").decode(errors="replace"), 300)


def _read(path: pathlib.Path, flag: str) -> tuple[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with no_collection(), path.open(encoding="utf-8-sig") as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(f"{flag} {display(path)} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # Of JSON, and of UTF-8.
        reason = one_line(str(error), 120)
        raise DataError(
            f"{flag} {display(path)} is no JSON file, or a damaged one ({reason}). Download or export it again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{flag} {display(path)} is not in COCO's format: it holds a {type(content).__name__}, not an object with the "
            "lists 'images', 'annotations' and 'categories'. (Results of a detector are no annotations.)"
        )
    return digest, content


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Without searches for cycles, which JSON does not have and which take longer than reading it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
