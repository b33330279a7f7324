"""Detection of files that are no ``.pth`` files of tensors, with advice for each kind."""

import contextlib
import itertools
import pathlib
import pickletools
import re
import zipfile
from typing import IO

from gw_jax.errors import CheckpointError, one_line, shown

ZIP_MAGIC = b"PK\x03\x04"
# Bytes at the start of a file from which its kind is detected.
_START = 512

# First bytes, kind of the file, and advice.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file itself",
        "Run 'git lfs pull' where it came from, or download the file from the web page.",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Models of Keras or TensorFlow cannot be converted."),
    (b"\x93NUMPY", "an array of NumPy", "A checkpoint of PyTorch is needed."),
    (b"\x1f\x8b", "a gzip file", "Unpack it and use the .pth file inside."),
    (b"BZh", "a bzip2 file", "Unpack it and use the .pth file inside."),
    (b"\xfd7zXZ", "an xz file", "Unpack it and use the .pth file inside."),
    (b"Rar!", "a RAR archive", "Unpack it and use the .pth file inside."),
)

# Names under which training dicts keep a state dict.
_STATE_NAMES = ("state_dict", "model_state_dict", "model", "net")


def is_zip(path: pathlib.Path) -> bool:
    """Whether PyTorch has written the file since its version 1.6."""
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def refuse_other_kinds(path: pathlib.Path) -> None:
    """Raises CheckpointError, with fitting advice, for a file that is of a well-known kind but not PyTorch's."""
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        raise CheckpointError(
            f"{path} cannot be read: it is truncated, damaged, or not a PyTorch checkpoint (it is empty). "
            "Download or copy it again."
        )
    for magic, what, advice in _KINDS:
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {what}. {advice}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: the download was answered by a page, such as a login or a question "
            "whether to continue. Open the link in a browser and download the file itself."
        )
    if start[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive. Unpack it and use the .pth file inside.")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        raise CheckpointError(
            f"{path} is a safetensors file. A model of this project is loaded from its directory, by "
            "gw_jax.load_pretrained. For weights of PyTorch, make a .pth file first: "
            f"torch.save(safetensors.torch.load_file('{path.name}'), 'weights.pth')."
        )
    if start.startswith(ZIP_MAGIC):
        _refuse_other_zips(path)


def _refuse_other_zips(path: pathlib.Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:
        raise unreadable(path, error) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a state dict. Save its state dict with PyTorch: "
            f"torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pth')."
        )
    if not any(name.endswith("data.pkl") for name in names):
        listed = ", ".join(shown(name)[1:-1] for name in names[:3])
        raise CheckpointError(
            f"{path} is a zip file, but not one of torch.save; it holds {listed or 'nothing'}. If there is a .pth file "
            "inside, unpack it and use that."
        )


def unreadable(path: pathlib.Path, error: Exception) -> CheckpointError:
    """The error for a file that PyTorch refuses to load."""
    message = str(error)
    if found := re.search(r"(?:GLOBAL|global:?|class:?) ([\w.]*\.[\w.]+)", message[:10_000]):
        return CheckpointError(
            f"{path} holds the Python object {shown(found.group(1))[1:-1]}, not only tensors; building it would run "
            "code of the file's author. It was not run. If you trust the file, load it with PyTorch yourself and save its "
            f"state dict: {_advice(path)}."
        )
    reason = one_line(message.strip().splitlines()[0], 120) if message.strip() else type(error).__name__
    if "weights_only" in reason or isinstance(error, (KeyError, IndexError)):
        reason = "it is not in PyTorch's format"
    return CheckpointError(
        f"{path} cannot be read: it is truncated, damaged, or not a PyTorch checkpoint ({reason}). Download or copy it "
        "again and compare its size with the original's."
    )


def _advice(path: pathlib.Path) -> str:
    """The call that saves the state dict of the file; the file's pickle says where it is, without being unpickled."""
    loaded = f"torch.load({path.name!r}, weights_only=False)"
    strings = _strings(path)
    for name in _STATE_NAMES:
        if name in strings:
            return f"torch.save({loaded}[{name!r}], 'weights.pth')"
    return f"torch.save({loaded}.state_dict(), 'weights.pth')"


def _strings(path: pathlib.Path) -> set[str]:
    """The first strings in the pickles of the file."""
    found: set[str] = set()
    # What is damaged behind the first strings does not matter.
    with contextlib.suppress(Exception):
        if is_zip(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    _add_strings(file, found)
        else:
            with path.open("rb") as file:
                for _ in range(4):  # A number, a version, sizes of the machine's types, the content.
                    _add_strings(file, found)
    return found


def _add_strings(file: IO[bytes], found: set[str], limit: int = 2000) -> None:
    operations = itertools.islice(pickletools.genops(file), limit)
    found.update(argument for _, argument, _ in operations if isinstance(argument, str))
