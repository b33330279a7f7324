"""The images of a folder with one sub-folder per class, ``DIR/CLASS/*.jpg``, found and checked."""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import stat
import warnings
from collections.abc import Iterable, Mapping

from gw_jax.data.decoding import FORMATS, open_image
from gw_jax.errors import DataError, one_line, shown

# Ends of file names of the formats that are read.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# What file managers leave behind; names that begin with a dot are skipped, too.
_LEFT_BEHIND = ("Thumbs.db", "desktop.ini", "__MACOSX")
# An example of a TFDS set must stay below 2 GB; no image of a permitted size needs as much as this.
_MAX_FILE_BYTES = 1 << 30
_MAX_NAMED = 5


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A split: its images by class.

    Attributes:
        root: the folder that the user gave.
        files: paths relative to ``root``, as text with "/", by the name of the class; both are sorted.
        num_bytes: size of all files.
    """

    root: pathlib.Path
    files: Mapping[str, tuple[str, ...]]
    num_bytes: int

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))

    def fingerprint(self) -> str:
        """Digest of the names and contents of all files. Sizes would not do: an edited bitmap keeps its size.

        Raises:
            DataError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for path in (path for paths in self.files.values() for path in paths):
            try:
                with (self.root / path).open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
            except OSError as error:
                raise DataError(f"{_display(self.root / path)} cannot be read: {error.strerror}.") from error
            digest.update(path.encode(errors="surrogateescape") + b"\0" + content)
        return digest.hexdigest()[:16]


def list_images(root: pathlib.Path, flag: str) -> ImageFolder:
    """Finds the images of ``root/CLASS``, at any depth below the class. Links are followed.

    Args:
        root: the folder.
        flag: the option that gave it, for messages.

    Raises:
        DataError: there is no such folder, it has no classes, or holds what is no image, a broken link, or a link to a
            folder above it.
    """
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{flag}={root} {problem}; give a folder that holds one sub-folder of images per class.")
    files: dict[str, tuple[str, ...]] = {}
    total, others = 0, []
    for entry in _entries(root):
        if not entry.is_dir():
            # Also a broken link to a class.
            others.append(entry.name)
            continue
        _check_class_name(entry.name, flag, root)
        found = sorted(_images_below(pathlib.Path(entry.path), (root.resolve(),)))
        files[entry.name] = tuple(path.relative_to(root).as_posix() for path, _ in found)
        total += sum(size for _, size in found)
    if others:
        raise DataError(
            f"{flag}={root} holds {_some(others)} beside the sub-folders of its classes. Put images into the sub-folder of "
            "their class, and move other files out of the folder."
        )
    if not any(files.values()):
        there = f"the sub-folders {_some(files)}, all without images" if files else "nothing"
        raise DataError(f"{flag}={root} holds {there}; it must hold one sub-folder of images per class.")
    return ImageFolder(root, files, total)


def check_classes(train: ImageFolder, evaluation: ImageFolder) -> None:
    """Checks that both splits have the same classes, and are different folders.

    Raises:
        DataError: a class without training images, or folders of which one holds the other.
    """
    roots = [folder.root.resolve() for folder in (train, evaluation)]
    if roots[0] == roots[1]:
        raise DataError(f"--train and --eval are the same folder, {train.root}; give images that are not trained on.")
    if roots[0] in roots[1].parents or roots[1] in roots[0].parents:
        raise DataError(
            f"Of --train={train.root} and --eval={evaluation.root}, one holds the other; give separate folders."
        )
    if empty := [name for name, paths in train.files.items() if not paths]:
        raise DataError(f"--train={train.root} has no images of {_some(empty)}. Add some, or remove these sub-folders.")
    if unknown := [name for name in evaluation.files if name not in train.files]:
        raise DataError(
            f"--eval={evaluation.root} has {_some(unknown)}, for which --train={train.root} has no sub-folder; it has "
            f"{_some(train.files)}. Names of classes must be the same in both."
        )


def check_images(folder: ImageFolder, num_threads: int | None = None) -> tuple[int | None, int | None, int]:
    """Decodes every image once; returns the shape that all have.

    Args:
        folder: a split.
        num_threads: threads that decode; None for one per core.

    Returns:
        ``(height, width, channels)``: height and width are None where images differ, channels 1 if all are grey, else 3.

    Raises:
        DataError: some cannot be decoded; the message names the first of them.
    """
    paths = [folder.root / path for paths in folder.files.values() for path in paths]
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        facts = list(pool.map(_inspect, paths))
    broken = [(path, reason) for path, reason in zip(paths, facts, strict=True) if isinstance(reason, str)]
    if broken:
        named = "; ".join(f"{_display(path)} ({reason})" for path, reason in broken[:_MAX_NAMED])
        more = f"; and {len(broken) - _MAX_NAMED} more" if len(broken) > _MAX_NAMED else ""
        raise DataError(
            f"{len(broken)} of {len(paths)} files in {folder.root} cannot be read as images: {named}{more}. "
            "Repair them, or move them out of the folder."
        )
    return merge_shapes(fact for fact in facts if not isinstance(fact, str))


def merge_shapes(
    shapes: Iterable[tuple[int | None, int | None, int]],
) -> tuple[int | None, int | None, int]:
    """The shape of images that have ``shapes``: None for edges that differ, 3 channels if any has 3."""
    height, width, channels = map(set, zip(*shapes, strict=True))
    same = len(height) == len(width) == 1
    return (height.pop(), width.pop(), max(channels)) if same else (None, None, max(channels))


def _inspect(path: pathlib.Path) -> tuple[int, int, int] | str:
    """Height, width and channels of an image, or why it cannot be read."""
    from PIL import Image

    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return f"{path.stat().st_size:,} bytes; at most {_MAX_FILE_BYTES:,} are read"
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = open_image(content, 3)
            picture.load()
            with Image.open(path, formats=FORMATS) as original:
                grey = original.mode in ("1", "L", "LA") or original.mode.startswith("I;16")
    except Exception as error:  # Pillow raises whatever it meets in damaged bytes.
        return one_line(f"{type(error).__name__}: {error}", 100)
    return picture.height, picture.width, 1 if grey else 3


def _images_below(directory: pathlib.Path, above: tuple[pathlib.Path, ...]) -> list[tuple[pathlib.Path, int]]:
    """Paths and sizes of all images below ``directory``, which is inside of the folders ``above``."""
    real = directory.resolve()
    if real in above:
        raise DataError(f"{_display(directory)} is a link to {real}, a folder that holds it. Remove the link.")
    images = []
    for entry in _entries(directory):
        path = pathlib.Path(entry.path)
        try:
            status = path.stat()
        except OSError as error:
            link = f", a link to {os.readlink(path)}," if path.is_symlink() else ""
            raise DataError(f"{_display(path)}{link} cannot be read: {error.strerror}. Repair or remove it.") from error
        if stat.S_ISDIR(status.st_mode):
            images += _images_below(path, (*above, real))
        elif not stat.S_ISREG(status.st_mode) or path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{_display(path)} is no image: its name must end in {', '.join(SUFFIXES)}. Move it out of the folder."
            )
        else:
            images.append((path, status.st_size))
    return images


def _entries(directory: pathlib.Path) -> list[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{_display(directory)} cannot be read: {error.strerror}.") from error
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _LEFT_BEHIND]


def _check_class_name(name: str, flag: str, root: pathlib.Path) -> None:
    # TFDS keeps the names in a text file, one per line.
    if name != name.strip() or not name.isprintable():
        raise DataError(
            f"{flag}={root} has a sub-folder named {shown(name)}. The name of a class must be printable, without blanks at "
            "its ends."
        )


def _display(path: pathlib.Path) -> str:
    return one_line(os.fsencode(path).decode(errors="replace"), 300)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(shown, names[:_MAX_NAMED])) + more
