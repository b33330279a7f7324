"""Archives of ImageNet that are damaged, incomplete or hostile are named before anything is written."""

import shutil
import tarfile

import pytest

from gw_jax.data.prepare.archives import check_archives
from gw_jax.errors import DataError
from tests.helpers.imagenet import TRAIN, VALIDATION, jpeg, tar, validation_files
from tests.helpers.prepare import refused


def cut(content):
    """Ends within a member, of which the header is there."""
    return content[: len(content) - 15_000]


def other_members(content):
    return tar([("n01440764/n01440764_1.JPEG", jpeg(0))])


def packed_again(content):
    return tar([(f"./{name}", file) for name, _, file in validation_files()])


def without_the_second(content):
    return tar([(name, file) for name, _, file in validation_files() if not name.endswith("2.JPEG")])


NAME = "ILSVRC2012_val_00000001"


def special_member(kind):
    """An archive whose first member is right but for its type."""

    def damage(content):
        member = tarfile.TarInfo(f"{NAME}.JPEG")
        member.type, member.linkname = getattr(tarfile, kind), "/etc/passwd"
        return member.tobuf(tarfile.GNU_FORMAT) + content

    return damage


def with_size(size, kind=tarfile.REGTYPE):
    """An archive whose first header claims a size."""

    def damage(content):
        member = tarfile.TarInfo(f"{NAME}.JPEG")
        member.type, member.size = kind, size
        return member.tobuf(tarfile.GNU_FORMAT) + content

    return damage


def attributes(records):
    """An archive whose first member has extended attributes."""

    def damage(content):
        member = tarfile.TarInfo("attributes")
        member.type, member.size = tarfile.XHDTYPE, len(records)
        return member.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + content

    return damage


DAMAGES = {
    "missing": (TRAIN, None, rf"does not hold {TRAIN}; it holds {VALIDATION}\. Download the file"),
    "truncated": (VALIDATION, cut, rf"{VALIDATION} (is damaged or not a tar file|ends after .* bytes, within a member)"),
    "header": (TRAIN, lambda content: content[:300], rf"{TRAIN} is damaged or not a tar file \(truncated header\)"),
    "empty": (TRAIN, lambda content: b"", rf"{TRAIN} is damaged or not a tar file \(empty file\)"),
    "no members": (TRAIN, lambda content: tar([]), rf"{TRAIN} is empty"),
    "no tar": (TRAIN, lambda content: b"<html>403 Forbidden</html>" * 100, rf"{TRAIN} is damaged or not a tar file"),
    "other members": (TRAIN, other_members, rf"{TRAIN} holds 'n01440764/n01440764_1.JPEG', where members like"),
    "swapped": (VALIDATION, lambda content: tar([("n01440764.tar", b"")]), rf"{VALIDATION} holds 'n01440764.tar'"),
    "packed again": (VALIDATION, packed_again, rf"{VALIDATION} holds './ILSVRC2012_val_00000001.JPEG'"),
    "twice": (
        VALIDATION,
        lambda content: tar([(f"{NAME}.JPEG", b"a"), (f"{NAME}.JPEG", b"b")]),
        rf"holds '{NAME}.JPEG', twice",
    ),
    **{
        kind: (VALIDATION, special_member(kind), rf"holds '{NAME}.JPEG', which is a link, directory, device or sparse file")
        for kind in ("LNKTYPE", "SYMTYPE", "FIFOTYPE", "DIRTYPE", "CHRTYPE", "CONTTYPE", "GNUTYPE_SPARSE")
    },
    "huge": (VALIDATION, with_size(10**12), rf"holds '{NAME}.JPEG', of 1,000,000,000,000 bytes, more than the archive has"),
    "negative": (VALIDATION, with_size(-1024), rf"{VALIDATION} (holds|is damaged)"),
    "name without end": (
        VALIDATION,
        with_size(10**11, b"L"),
        r"not a tar file \(a header of 100,000,000,000",
    ),
    "attributes": (VALIDATION, attributes(b"24 GNU.sparse.size=x\n"), rf"{VALIDATION} (holds|is damaged)"),
    "attribute length": (VALIDATION, attributes(b"9999999999999999999999 a=b\n"), rf"{VALIDATION} (holds|is damaged)"),
    "gap": (VALIDATION, without_the_second, rf"{VALIDATION} lacks images before its last, number 5: .* wrong labels"),
}


@pytest.mark.parametrize(("archive", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_archive_is_named_before_anything_is_written(manual_dir, tmp_path, archive, damage, message):
    archives, data_dir = tmp_path / "archives", tmp_path / "data"
    shutil.copytree(manual_dir, archives)
    if damage is None:
        (archives / archive).unlink()
    else:
        (archives / archive).write_bytes(damage((archives / archive).read_bytes()))
    command = ["imagenet2012", f"--manual_dir={archives}", f"--data_dir={data_dir}", "--allow_partial"]
    error = refused(*command)
    with pytest.raises(DataError, match=message):
        check_archives("imagenet2012", str(archives), allow_partial=True)
    assert error.startswith(str(archives))
    assert not data_dir.exists()


def test_whole_archives_are_measured(manual_dir):
    sizes = {name: (manual_dir / name).stat().st_size for name in (TRAIN, VALIDATION)}
    assert check_archives("imagenet2012", str(manual_dir), allow_partial=True) == sum(sizes.values())
    assert check_archives("imagenet2012_real", str(manual_dir), allow_partial=True) == sizes[VALIDATION]
