"""Answers of kernel checks, kept between processes in the user's cache directory.

One small JSON file per answer, named by the digest of its key: what was checked, on which machine, under which versions.
A file is written whole or not at all, so processes that write at once do not harm each other. Another version has another
name, and a file whose key is not the one that is sought is not believed.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib

from gw_jax._version import __version__
from gw_jax.errors import one_line, shown
from gw_jax.files import write_atomically
from gw_jax.versions import dotted, installed

DIRECTORY_VARIABLE = "GW_JAX_CACHE_DIR"
# Answers take some 1,000 bytes.
_MOST_BYTES = 1 << 16
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of the check of a kernel.

    Attributes:
        passed: whether the kernel was right.
        problem: what was wrong, as the end of a sentence; "" where it passed.
        errors: largest error of each result, relative to its largest value; empty where the kernel did not run.
        seconds: duration of the check.
        checked_at: its time, UTC, as ISO 8601.
        cached: whether it was read from a file.
        keep: whether it is worth a file; out of memory, for instance, may be different the next time.
    """

    passed: bool
    problem: str = ""
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    checked_at: str = dataclasses.field(default_factory=lambda: _now().isoformat(timespec="seconds"))
    cached: bool = False
    keep: bool = True

    @property
    def age(self) -> str:
        """When the check was, for a person."""
        if not self.cached:
            return "now"
        hours = (_now() - datetime.datetime.fromisoformat(self.checked_at)).total_seconds() / 3600
        if hours < 1:
            return "less than an hour ago"
        return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def directory() -> pathlib.Path | None:
    """``$GW_JAX_CACHE_DIR``, else ``$XDG_CACHE_HOME/gw_jax``, else ``~/.cache/gw_jax``; None without a home directory."""
    if own := os.environ.get(DIRECTORY_VARIABLE):
        return pathlib.Path(own).absolute()
    # The standard of XDG_CACHE_HOME: a relative path is ignored.
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return pathlib.Path(base) / "gw_jax"
    try:
        return pathlib.Path.home() / ".cache" / "gw_jax"
    except RuntimeError:
        return None


@functools.cache
def sources_digest() -> str:
    """A digest of the sources from which the kernels are made."""
    folder = pathlib.Path(__file__).parent
    digest = hashlib.sha256(__version__.encode())
    for path in (*sorted(folder.glob("*.py")), folder.parent / "inverse_sqrt.py"):
        # A package that is imported from an archive has no files, but a version.
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Everything that a compiled kernel depends on, apart from the device."""
    compilers = {"jax_triton": "jax-triton", "triton": "triton"}
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        **{name: dotted(installed(package) or ()) for name, package in compilers.items()},
        # The compiler of a TPU is a part of libtpu, that of a GPU comes with CUDA.
        "runtime": " ".join(str(jax.local_devices()[0].client.platform_version).split()),
        "kernels": sources_digest(),
    }


def machine() -> str:
    """The name of this machine. A home directory may be that of several, and a check holds where it was made."""
    return platform.node()


def path_of(key: Mapping[str, Any]) -> pathlib.Path | None:
    """The file of the answer to ``key``, JSON values."""
    folder = directory()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return None if folder is None else folder / "kernel_checks" / f"{name}.json"


def read(key: Mapping[str, Any]) -> Answer | None:
    """The kept answer to ``key``, or None. A file that cannot be read, or that is something else, is logged once."""
    path = path_of(key)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _warn(f"{path} cannot be read ({error.strerror}); the kernel counts as not checked.")
        return None
    try:
        return _parse(content, key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = one_line(str(error), 100)
        _warn(f"{path} is damaged or no answer of a kernel check ({reason}); it is ignored. The next check replaces it.")
        return None


def _parse(content: bytes, key: Mapping[str, Any]) -> Answer:
    if len(content) > _MOST_BYTES:
        raise ValueError("it is too large")
    stored = json.loads(content)
    if stored["key"] != key:
        raise ValueError("it is the answer to something else")
    answer = stored["answer"]
    passed, problem, errors, seconds = (answer[name] for name in ("passed", "problem", "errors", "seconds"))
    if not isinstance(passed, bool) or not isinstance(problem, str):
        raise ValueError(f"passed is {shown(passed, 20)} and problem {shown(problem, 20)}")
    checked_at = datetime.datetime.fromisoformat(answer["checked_at"])
    if checked_at.tzinfo is None:
        raise ValueError("the time has no zone")
    return Answer(
        passed=passed,
        problem=one_line(problem),
        errors={str(name): float(error) for name, error in errors.items()},
        seconds=float(seconds),
        checked_at=checked_at.isoformat(),
        cached=True,
    )


def write(key: Mapping[str, Any], answer: Answer) -> None:
    """Keeps an answer. Where that is not possible, it is logged once, and the next process checks again."""
    path = path_of(key)
    if path is None or not answer.keep:
        return
    values = {
        **dataclasses.asdict(answer),
        # JSON has no infinity, which stands for NaN here, too.
        "errors": {name: min(error, 1e300) if not math.isnan(error) else 1e300 for name, error in answer.errors.items()},
    }
    values = {name: value for name, value in values.items() if name not in ("cached", "keep")}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"key": key, "answer": values}, indent=1) + "\n")
    except OSError as error:
        _warn(
            f"The answers of kernel checks cannot be kept in {path.parent} ({error.strerror}), so the next process checks "
            f"again. Set {DIRECTORY_VARIABLE} to a directory that can be written."
        )


@functools.cache
def _warn(message: str) -> None:
    _LOGGER.warning(message)
