"""Reading and writing ``.pth`` files. The only file that imports PyTorch; nothing is unpickled freely."""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import pathlib
import re
from collections import OrderedDict
from typing import Any, Literal

import numpy as np

from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.files import replacing

Container = Literal["legacy", "zip"]

ZIP_MAGIC = b"PK\x03\x04"
# Few and large pieces: between two of them the thread competes with all others for the interpreter.
HASHED_AT_ONCE = 1 << 23
PREFIX = "module."
# Where a training dict keeps its state dict: the reference's name, and the usual one.
STATE_KEYS = ("model", "state_dict")


@dataclasses.dataclass
class TorchFile:
    """What a ``.pth`` file holds.

    Attributes:
        checksum: the SHA-256 of the file, computed meanwhile.
        container: "zip", or "legacy", as PyTorch wrote it before 1.6.
        state: its state dict, without the prefix of ``DataParallel``; arrays share the file's memory.
        prefixed: whether every key had that prefix.
        training: the rest of a training dict (cfg, optimizer, epoch, ...), or None for a bare state dict.
    """

    checksum: concurrent.futures.Future[str]
    container: Container
    state: "OrderedDict[str, np.ndarray]"
    prefixed: bool
    training: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """What the reference calls such a file."""
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


def read_torch_file(path: pathlib.Path) -> TorchFile:
    """Reads either kind of checkpoint in either container.

    Tensors are all that is unpickled, beside numbers, strings, lists, dicts and the ``argparse.Namespace`` of a
    training dict.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or one that asks for other code to be run.
        ConfigError: PyTorch is not installed.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no file {path}." if not path.exists() else f"{path} is a directory, not a .pth file."
        )
    torch = import_torch()
    with path.open("rb") as file:
        container: Container = "zip" if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC else "legacy"
    # PyTorch and hashlib both let go of the interpreter; whoever needs the checksum waits for it.
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    checksum = pool.submit(_sha256, path)
    pool.shutdown(wait=False)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises what its unpickler happens to hit.
        raise _reading_error(path, error) from error
    state, training = _split(path, content)
    prefixed = bool(state) and all(key.startswith(PREFIX) for key in state)
    arrays = OrderedDict((key.removeprefix(PREFIX) if prefixed else key, _array(path, key, state[key])) for key in state)
    return TorchFile(checksum, container, arrays, prefixed, training)


def _sha256(path: pathlib.Path) -> str:
    digest, chunk = hashlib.sha256(), bytearray(HASHED_AT_ONCE)
    with path.open("rb") as file:
        while size := file.readinto(chunk):
            digest.update(memoryview(chunk)[:size])
    return digest.hexdigest()


def _reading_error(path: pathlib.Path, error: Exception) -> CheckpointError:
    message = str(error)
    if found := re.search(r"(?:GLOBAL|global:?|class:?) ([\w.]*\.[\w.]+)", message):
        return CheckpointError(
            f"{path} holds the Python object {found.group(1)}, not only tensors; building it would run code of the file's "
            "author. It was not run. If you trust the file, load it with PyTorch yourself and save its state dict: "
            "torch.save(content['model'], ...)."
        )
    reason = message.strip().splitlines()[0][:120] if message.strip() else type(error).__name__
    if path.stat().st_size == 0:
        reason = "it is empty"
    elif "weights_only" in reason or "KeyError" in type(error).__name__:
        reason = "it is not in PyTorch's format"
    return CheckpointError(
        f"{path} cannot be read: it is truncated, damaged, or not a PyTorch checkpoint ({reason}). Download or copy it "
        "again and compare its size with the original's."
    )


def _split(path: pathlib.Path, content: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    torch = import_torch()
    if isinstance(content, dict):
        for name in STATE_KEYS:
            if isinstance(content.get(name), dict):
                return content[name], {key: value for key, value in content.items() if key != name}
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return content, None
        keys = ", ".join(map(str, list(content)[:8])) or "none"
        what = f"a dict with the keys {keys}"
    else:
        what = f"a {type(content).__name__}"
    raise CheckpointError(
        f"{path} is no checkpoint of a network: it holds {what}. A state dict (names and tensors) is needed, or a training "
        "dict with one under 'model'."
    )


def _array(path: pathlib.Path, key: str, value: Any) -> np.ndarray:
    torch = import_torch()
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_complex():
        what = f"a {type(value).__name__}" if not isinstance(value, torch.Tensor) else f"a {value.dtype} tensor"
        raise CheckpointError(f"{path}: the entry {key!r} is {what}; dense tensors of real numbers are needed.")
    value = value.detach()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()


def tensors_to_arrays(value: Any) -> Any:
    """``value`` with tensors of one element as Python numbers and others as arrays, through dicts, lists and tuples."""
    if hasattr(value, "detach"):
        array = value.detach().numpy()
        return array.item() if array.size == 1 else array
    if isinstance(value, dict):
        return {key: tensors_to_arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(tensors_to_arrays(item) for item in value)
    return value


def write_torch_file(
    path: str | pathlib.Path, state: "OrderedDict[str, np.ndarray]", *, container: Container = "legacy"
) -> None:
    """Writes a state dict that the reference's ``--load`` takes.

    Args:
        path: the new file.
        state: as :func:`to_torch_state` returns it.
        container: "legacy", which every version of PyTorch reads, the reference's 1.0 included, or "zip".

    Raises:
        CheckpointError: ``path`` exists.
        ConfigError: PyTorch is not installed.
    """
    path = pathlib.Path(path).expanduser()
    if container not in ("legacy", "zip"):
        raise ConfigError(f"container={container!r} is not known; choose 'legacy' or 'zip'.")
    if path.exists():
        raise CheckpointError(f"{path} exists already; it was not touched. Give another name, or move it away first.")
    torch = import_torch()
    tensors = OrderedDict((key, torch.from_numpy(value)) for key, value in state.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(tensors, temporary, _use_new_zipfile_serialization=container == "zip")
