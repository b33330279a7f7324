"""Reading and writing ``.pth`` files. Of this package only this file imports PyTorch; nothing is unpickled freely."""

import argparse
import collections
import dataclasses
import hashlib
import pathlib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from gw_jax.convert.file_errors import file_errors
from gw_jax.convert.file_kinds import is_zip, refuse_other_kinds, unreadable
from gw_jax.convert.state_dict import StateDict, find_state_dict
from gw_jax.errors import CheckpointError, ConfigError, UserError, shown, unknown_name
from gw_jax.files import new_file, require_new, write_error

Container = Literal["legacy", "zip"]
CONTAINERS = ("legacy", "zip")

_AGAIN = "Download or copy it again."

# Containers in a training dict deeper than this are not read; those that matter are at most 4 deep.
MAX_DEPTH = 16


@dataclasses.dataclass
class TorchFile:
    """The content of a ``.pth`` file.

    Attributes:
        sha256: its checksum.
        container: "zip", or "legacy", as PyTorch wrote it before 1.6.
        weights: its state dict and how it was found; arrays share the memory of the file.
        training: the rest of a training dict (cfg, optimizer, epoch, ...), or None for a bare state dict. Dicts, lists and
            tuples are plain ones, a namespace is a dict; tensors are still PyTorch's.
    """

    sha256: str
    container: Container
    weights: StateDict
    training: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """The kind of the file, and the reference's name of such a file."""
        return "state dict (best.pth)" if self.training is None else "training dict (checkpoint.pth)"


def import_torch() -> Any:
    """PyTorch.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            "Reading and writing .pth files needs PyTorch, which is not installed. Install the extra: pip install "
            "'gw_jax[torch]' (or, in a checkout, pip install -e '.[torch]')."
        ) from error
    return torch


def read_torch_file(path: pathlib.Path, *, ema: bool = False) -> TorchFile:
    """Reads either kind of checkpoint in either container.

    Tensors are all that is unpickled, beside numbers, strings, lists, dicts and the ``argparse.Namespace`` of a
    training dict.

    Args:
        path: the file.
        ema: whether to read the averaged weights of a training dict that has both.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or one that would run code of its own.
        ConfigError: PyTorch is not installed.
    """
    with file_errors(str(path)):
        if not path.is_file():
            what = f"{path} is a directory, not a .pth file." if path.is_dir() else f"There is no file {path}."
            raise CheckpointError(what)
        torch = import_torch()
        container: Container = "zip" if is_zip(path) else "legacy"
        refuse_other_kinds(path)
        sizes = _check_zip(path) if container == "zip" else None
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        content = plain(_load(torch, path, container))
        if sizes is not None:
            _check_storages(path, content, sizes)
        found = find_state_dict(str(path), content, ema=ema)
        arrays = {key: to_array(value, key, str(path)) for key, value in found.state.items()}
        _check_size(path, arrays)
        training = None if found.name is None else {key: value for key, value in content.items() if key != found.name}
        return TorchFile(sha256, container, dataclasses.replace(found, state=arrays), training)


def _load(torch: Any, path: pathlib.Path, container: Container) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # A zip file is mapped: PyTorch does not compare the sizes that its pickle claims with those of its records, and
            # a read behind the end of a record's memory would end the process.
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=container == "zip")
    except Exception as error:  # PyTorch raises what its unpickler happens to hit.
        raise unreadable(path, error) from error


def _check_zip(path: pathlib.Path) -> list[int]:
    """The sizes of the records that hold the data of tensors.

    Raises:
        CheckpointError: they are compressed, together larger than the file, or damaged. PyTorch compares no checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            compressed = next((record for record in records if record.compress_type != zipfile.ZIP_STORED), None)
            if compressed is not None:
                raise CheckpointError(
                    f"{path} is a compressed zip file ({shown(compressed.filename)}), which PyTorch does not write. If it "
                    "was packed again, unpack it and use the .pth file inside."
                )
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise CheckpointError(
                    f"{path} is damaged: its records are larger than the file. Download or copy it again."
                )
            damaged = archive.testzip()
    except UserError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of its record {shown(damaged)} does not match. {_AGAIN}")
    return [record.file_size for record in records if re.search(r"/data/\d+$", record.filename)]


def _check_storages(path: pathlib.Path, content: Any, sizes: list[int]) -> None:
    """Raises CheckpointError for a tensor that needs more bytes than any record has; PyTorch does not compare them."""
    available, storages = collections.Counter(sizes), set()
    for name, tensor in _tensors(content, "", set()):
        if tensor.device.type != "cpu" or str(tensor.layout) != "torch.strided":
            continue
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0 or storage.data_ptr() in storages:
            continue
        storages.add(storage.data_ptr())
        available[storage.nbytes()] -= 1
        if available[storage.nbytes()] < 0:
            raise CheckpointError(
                f"{path} is damaged: the entry {shown(name[1:])} needs {storage.nbytes()} bytes, and no record has as "
                f"many. {_AGAIN}"
            )


def _tensors(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """All tensors in plain containers, each once, with their names."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if hasattr(value, "untyped_storage"):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(item, f"{name}.{key if isinstance(key, str) else shown(key)}"[-300:], seen)


def plain(value: Any) -> Any:
    """``value`` with dicts, lists and tuples of no class of its own, and namespaces as dicts.

    So no attribute that a pickle gave to an object is ever called. Other objects stay. What is nested too deeply or
    contains itself becomes its type's name. An object that occurs twice is converted once, so the time is bounded by
    the number of objects.
    """
    return _plain(value, {}, 0)


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    if not isinstance(value, (dict, list, tuple, argparse.Namespace)):
        return value
    if id(value) in done:
        return done[id(value)]
    if depth > MAX_DEPTH:
        return f"<{type(value).__name__}>"
    done[id(value)] = f"<{type(value).__name__}>"  # For a value that contains itself.
    result: Any
    if isinstance(value, argparse.Namespace):
        result = _plain(vars(value), done, depth)
    elif isinstance(value, dict):
        result = {key: _plain(item, done, depth + 1) for key, item in dict.items(value)}
    elif isinstance(value, list):
        result = [_plain(item, done, depth + 1) for item in list.__iter__(value)]
    else:
        result = tuple(_plain(item, done, depth + 1) for item in tuple.__iter__(value))
    done[id(value)] = result
    return result


def to_array(value: Any, key: str, source: str) -> np.ndarray:
    """The tensor ``value``, the entry ``key`` of ``source``, as an array that shares its memory.

    Raises:
        CheckpointError: not a dense tensor of real numbers, on a device without data, without elements, or larger than
            the data it stands for.
    """
    if isinstance(value, np.ndarray):
        return value
    torch = import_torch()
    with file_errors(source, key):
        if not isinstance(value, torch.Tensor):
            _refuse(source, key, f"a {type(value).__name__}", "dense tensors of real numbers are needed")
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            _refuse(source, key, f"a {value.dtype} tensor ({value.layout})", "dense tensors of real numbers are needed")
        supported = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32)
        if value.dtype not in supported:
            _refuse(source, key, f"a {value.dtype} tensor", "weights of float16, bfloat16, float32 or float64 are needed")
        if value.device.type != "cpu":
            _refuse(source, key, f"a tensor without data (on the device {value.device})", "its values are needed")
        if value.numel() == 0:
            _refuse(source, key, f"a tensor of shape {shown(list(value.shape))}, which has no values", "each needs some")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            what = f"a view of shape {shown(list(value.shape))} on {value.untyped_storage().nbytes()} bytes"
            _refuse(source, key, what, "each value must be stored")
        value = value.detach().resolve_neg()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(jnp.bfloat16)
        return value.numpy()


def _refuse(source: str, key: str, what: str, needed: str) -> None:
    raise CheckpointError(f"The entry {shown(key)} of {source} is {what}; {needed}.")


def _check_size(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    total, size = sum(array.nbytes for array in arrays.values()), path.stat().st_size
    if total > size:
        raise CheckpointError(
            f"The entries of {path} are {total} bytes, but the file has only {size}: several of them share their values, "
            "which no network here does."
        )


def write_torch_file(
    path: str | pathlib.Path, state: "OrderedDict[str, np.ndarray]", *, container: Container = "legacy"
) -> None:
    """Writes a state dict for the reference's ``--load``.

    Args:
        path: the new file.
        state: as :func:`to_torch_state` returns it.
        container: "legacy", which every version of PyTorch reads, the reference's 1.0 included, or "zip".

    Raises:
        CheckpointError: ``path`` exists, or cannot be written.
        ConfigError: PyTorch is not installed, or ``container`` is not known.

    Example:
        >>> import numpy as np  # needs PyTorch
        >>> from gw_jax.convert import write_torch_file
        >>> write_torch_file("state.pth", {"weight": np.ones(3, np.float32)})
    """
    if container not in CONTAINERS:
        raise ConfigError(unknown_name("container", container, CONTAINERS))
    path = pathlib.Path(path).expanduser()
    require_new(path)
    torch = import_torch()
    tensors = OrderedDict((key, torch.from_numpy(value)) for key, value in state.items())
    try:
        with new_file(path) as temporary:
            torch.save(tensors, temporary, _use_new_zipfile_serialization=container == "zip")
    except Exception as error:  # PyTorch reports a full disk by a RuntimeError.
        raise write_error(path, error) from error
