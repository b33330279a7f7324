"""Checks of the official ImageNet archives before hours of preparing: present, complete, and with the right members."""

import dataclasses
import re
import tarfile
from typing import Any, cast

from gw_jax.errors import DataError, one_line, shown

# TFDS first sorts examples into temporary files and then writes the shards, so that for a while there are two copies.
COPIES_WHILE_PREPARING = 2.1
# Long names and attributes of a member need a few hundred bytes.
MAX_HEADER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Archive:
    """A tar file: its name, its size in bytes, and the pattern of the names of its members.

    A group in that pattern is the number of the member, from 1: TFDS assigns the labels in the order of the names.
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
        allow_partial: accepts archives that are smaller than the official ones, if they are complete.

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
                "from image-net.org (an account is needed) and put it there, or give another --manual_dir."
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
    names: set[str] = set()
    numbers: set[int] = set()
    end = 0
    try:
        with path.open("rb") as file, tarfile.TarFile(fileobj=cast(Any, _HeaderReader(file))) as tar:
            for member in tar:
                name = re.fullmatch(archive.members, member.name)
                if name is None:
                    raise _refused(path, member.name, f"where members like {archive.members} belong")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                    raise _refused(path, member.name, "which is a link, directory, device or sparse file, no plain file")
                if member.name in names:
                    raise _refused(path, member.name, "twice")
                if not 0 <= member.size <= size:
                    raise _refused(path, member.name, f"of {member.size:,} bytes, more than the archive has")
                names.add(member.name)
                end = member.offset_data + member.size
                numbers.update(map(int, name.groups()))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except DataError:
        raise
    except Exception as error:  # tarfile's own errors, and whatever absurd numbers in a header lead it to.
        reason = one_line(str(error) or type(error).__name__)
        raise DataError(f"{path} is damaged or not a tar file ({reason}). Download or copy it again.") from error
    if not names or end > size:
        what = f"ends after {size:,} bytes, within a member that goes to {end:,}" if names else "is empty"
        raise DataError(f"{path} {what}; it is truncated. Download or copy it again.")
    if numbers and numbers != set(range(1, len(names) + 1)):
        raise DataError(
            f"{path} lacks images before its last, number {max(numbers)}: the others would get wrong labels. A part of the "
            f"archive must hold its first images, such as 1 to {len(names)}."
        )


class _HeaderReader:
    """A file whose headers can be read, but no header of a size that fills the memory."""

    def __init__(self, file: Any):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """As the file's, up to :data:`MAX_HEADER_BYTES`."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _refused(path: Any, member: str, why: str) -> DataError:
    return DataError(
        f"{path} holds {shown(member)}, {why}. It is another archive, or was packed again: use the official file."
    )
