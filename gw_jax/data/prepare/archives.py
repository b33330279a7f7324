"""The official ImageNet archives: are they there, whole, and what they claim to be? Asked before hours of preparing."""

import dataclasses
import re
import shutil
import tarfile
from typing import Any

from gw_jax.errors import DataError

# TFDS first sorts examples into temporary files and then writes the shards, so that for a while there are two copies.
COPIES_WHILE_PREPARING = 2.1


@dataclasses.dataclass(frozen=True)
class Archive:
    """A tar file: its name, its size in bytes, and what the names of its members look like.

    Where that has a group, it counts the members from 1: TFDS takes the labels of the images by their order.
    """

    name: str
    size: int
    members: str


TRAIN = Archive("ILSVRC2012_img_train.tar", 147_897_477_120, r"n\d{8}\.tar")
VALIDATION = Archive("ILSVRC2012_img_val.tar", 6_744_924_160, r"ILSVRC2012_val_(\d{8})\.JPEG")
# What each TFDS builder reads in its manual_dir.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "imagenet2012": (TRAIN, VALIDATION),
    "imagenet2012_real": (VALIDATION,),
}


def check_archives(name: str, manual_dir: str, *, allow_partial: bool) -> int:
    """Checks the archives that the TFDS builder ``name`` reads in ``manual_dir``; returns their size in bytes.

    Args:
        name: a key of :data:`ARCHIVES`.
        manual_dir: a path or a bucket.
        allow_partial: takes archives that are smaller than the official ones, if they are whole.

    Raises:
        DataError: one is missing, truncated, not a tar file, or holds something else.
    """
    from etils import epath

    directory = epath.Path(manual_dir)
    if not directory.is_dir():
        raise DataError(
            f"There is no directory {manual_dir}. Give the one that holds "
            f"{' and '.join(archive.name for archive in ARCHIVES[name])} as --manual_dir."
        )
    total = 0
    for archive in ARCHIVES[name]:
        path = directory / archive.name
        if not path.is_file():
            there = sorted(entry.name for entry in directory.iterdir())[:8]
            raise DataError(
                f"{manual_dir} does not hold {archive.name}; it holds {', '.join(there) or 'nothing'}. Download the file "
                "from "
                "image-net.org (an account is needed) and put it there, or give another --manual_dir."
            )
        size = path.stat().length
        if size != archive.size and not allow_partial:
            raise DataError(
                f"{path} has {size:,} bytes; the official file has {archive.size:,}. It is truncated or another file: "
                "download it again (or give --allow_partial if it is a part on purpose)."
            )
        _check_members(path, size, archive)
        total += size
    return total


def _check_members(path: Any, size: int, archive: Archive) -> None:
    end, count = 0, 0
    numbers: set[int] = set()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = re.fullmatch(archive.members, member.name)
                if name is None:
                    raise DataError(
                        f"{path} holds {member.name!r}; members like {archive.members} belong there. It is another "
                        "archive, "
                        "or was packed again: take the official file."
                    )
                end, count = member.offset_data + member.size, count + 1
                numbers.update(map(int, name.groups()))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is damaged or not a tar file ({error}). Download or copy it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if count == 0 or end > size:
        what = "is empty" if count == 0 else f"ends after {size:,} bytes, within a member that goes to {end:,}"
        raise DataError(f"{path} {what}; it is truncated. Download or copy it again.")
    if numbers and numbers != set(range(1, count + 1)):
        raise DataError(
            f"{path} lacks images before its last, number {max(numbers)}: the others would get wrong labels. A part of the "
            f"archive must hold its first images, such as 1 to {count}."
        )


def check_free_space(data_dir: str, needed: float) -> None:
    """Raises DataError if the disk of ``data_dir`` (a local path) has less than ``needed`` bytes left."""
    from etils import epath

    directory = epath.Path(data_dir)
    if "://" in data_dir:
        return
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DataError(
            f"Preparing needs about {needed / 1e9:.0f} GB in {data_dir} (half of it only while it runs), and "
            f"{free / 1e9:.0f} GB are free. Give a --data_dir on a larger disk."
        )
