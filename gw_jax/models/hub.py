"""Models on the Hugging Face Hub: ``hf://OWNER/NAME[@REVISION][/SUBFOLDER]``."""

import dataclasses
import os
import pathlib
import re
from typing import Any

from gw_jax.errors import CheckpointError, ConfigError, one_line, raise_missing_package, shown

# load_pretrained needs no other files, whatever the repository holds.
FILES = ("config.json", "model.safetensors")

# Characters that mean nothing to a shell, a URL or the hub's file patterns.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ADDRESS = re.compile(rf"hf:/{{1,2}}({_NAME}/{_NAME})(?:@({_NAME}(?:%2F{_NAME})*))?((?:/{_NAME})*)/?")

# Errors of huggingface_hub and of its HTTP clients by the names of their classes, which are in other modules in other
# versions: what is wrong, and what to do.
_REASONS = {
    "GatedRepoError": "the repository is gated. Ask for access on its page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "there is no such repository, or it is private. Check the name, or log in with "
    "`hf auth login`",
    "RevisionNotFoundError": "the repository has no such revision",
    "LocalEntryNotFoundError": "it is not in the local cache, and the hub cannot be reached, or HF_HUB_OFFLINE is set. "
    "Connect to the network once, or pass the directory of a copy",
    "OfflineModeIsEnabled": "it is not in the local cache, and HF_HUB_OFFLINE is set",
}


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """The parts of an address: repository, revision (None for the default branch), folder within it ("" for its root)."""

    repository: str
    revision: str | None
    folder: str


def is_hub_address(directory: str | os.PathLike[str]) -> bool:
    """Whether ``directory`` is an address of the hub. A ``pathlib.Path`` has one slash after the colon."""
    return os.fspath(directory).startswith("hf:/")


def parse_address(address: str) -> HubAddress:
    """The parts of ``address``.

    Raises:
        ConfigError: it is malformed.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(
            f"{shown(address)} is no address of a model; give 'hf://OWNER/NAME[@REVISION][/SUBFOLDER]', such as "
            "'hf://someone/resnet50_gw@v1.0', of letters, digits and ., _, - (a slash within a revision is %2F)."
        )
    repository, revision, folder = match.groups()
    return HubAddress(repository, None if revision is None else revision.replace("%2F", "/"), folder.strip("/"))


def download(address: str) -> pathlib.Path:
    """The local directory of the model at ``address``, downloaded unless it is in the hub's cache.

    Only ``config.json`` and ``model.safetensors`` are fetched; nothing of the repository is executed.

    Raises:
        CheckpointError: there is no such repository, revision or model, or the hub cannot be reached.
        ConfigError: ``huggingface_hub`` is not installed, or the address is malformed.
    """
    parts = parse_address(address)
    prefix = f"{parts.folder}/" if parts.folder else ""
    try:
        import huggingface_hub
    except ImportError as error:
        raise_missing_package(error, f"Loading {address}", "hub")
    try:
        root = huggingface_hub.snapshot_download(
            parts.repository, revision=parts.revision, allow_patterns=[prefix + name for name in FILES]
        )
    except Exception as error:  # Those of the hub, of its HTTP client and of the file system.
        raise CheckpointError(f"{shown(address)} cannot be downloaded: {_reason(error)}.") from error
    directory = pathlib.Path(root) / parts.folder
    missing = [prefix + name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{shown(address)} holds no model of gw_jax.save_pretrained: there is no {' and no '.join(missing)} in the "
            f"repository (or, offline, in the local cache {root}). For a subfolder give hf://{parts.repository}/SUBFOLDER."
        )
    return directory


def _reason(error: Any) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            return _REASONS[kind.__name__]
    return f"{type(error).__name__}: {one_line(str(error), 300)}".rstrip(".")
