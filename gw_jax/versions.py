"""The versions of JAX and Flax that gw_jax runs with, and everything that differs between them.

No other file compares versions. Importing this one fails where JAX or Flax is too old.
"""

import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

Version: TypeAlias = tuple[int, ...]

# The floors are Colab's versions; pyproject.toml repeats them. Tests run with these, and with NEWEST_TESTED.
OLDEST: dict[str, Version] = {"jax": (0, 7, 2), "flax": (0, 11, 2)}
NEWEST_TESTED: dict[str, Version] = {"jax": (0, 12, 0), "flax": (0, 12, 12)}
# Pallas changes between versions: below the first one with which all kernels passed their tests, there are none.
OLDEST_JAX_FOR_KERNELS: Version = (0, 10, 2)


def dotted(version: Version) -> str:
    """``(0, 7, 2)`` as ``"0.7.2"``."""
    return ".".join(map(str, version))


def installed(package: str) -> Version | None:
    """The version of an installed package, without suffixes such as ".dev2026", or None where there is none."""
    try:
        text = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # Built from source and on the path, it has no metadata.
        try:
            text = importlib.import_module(package).__version__
        except ImportError:
            return None
    return tuple(map(int, re.match(r"\d+(?:\.\d+)*", text).group().split(".")))[:3]  # type: ignore[union-attr]


def require_supported() -> None:
    """Checks the installed JAX and Flax without importing them.

    Raises:
        ImportError: one is missing or too old; the message says what to do.
    """
    found = {package: installed(package) for package in OLDEST}
    if all(version is not None and version >= OLDEST[package] for package, version in found.items()):
        return
    needed = " and ".join(f"{package} {dotted(oldest)}" for package, oldest in OLDEST.items())
    present = " and ".join(f"{package} {dotted(version) if version else '(missing)'}" for package, version in found.items())
    raise ImportError(
        f"gw_jax needs at least {needed}; this environment has {present}. Upgrade both together and restart Python: "
        'pip install -U jax flax on a CPU, with "jax[cuda12]", "jax[cuda13]" or "jax[tpu]" in place of jax for that '
        "accelerator. On Colab, choose the latest runtime version instead (Runtime > Change runtime type)."
    )


def untested() -> str | None:
    """A sentence that names an installed JAX or Flax newer than the tested ones, or None."""
    newer = [
        f"{package} {dotted(version)} (tested: up to {dotted(newest)})"
        for package, newest in NEWEST_TESTED.items()
        if (version := installed(package)) is not None and version > newest
    ]
    if not newer:
        return None
    return f"Newer than the versions that gw_jax was tested with: {', '.join(newer)}. If something fails, install those."


require_supported()

import jax  # noqa: E402
from flax import nnx  # noqa: E402


def no_kernels_because() -> str | None:
    """Why no Pallas kernel runs with the installed JAX, or None where they do."""
    if jax.__version_info__ >= OLDEST_JAX_FOR_KERNELS:
        return None
    return (
        f"The Pallas kernels need jax >= {dotted(OLDEST_JAX_FOR_KERNELS)}, the oldest version that they were tested with; "
        f"this is jax {jax.__version__}. Plain XLA computes the same."
    )


def batched_lapack_can_hang() -> bool:
    """Whether batches of decompositions can wait for each other for ever on a CPU: with jaxlib 0.10, not 0.9 or 0.11."""
    return (0, 10) <= jax.__version_info__ < (0, 11)


def module_list(modules: Iterable[Any]) -> Any:
    """A list of modules as an attribute of an ``nnx.Module``: ``nnx.List``, before Flax 0.12 a plain list."""
    return nnx.List(modules) if hasattr(nnx, "List") else list(modules)


def variable_value(variable: Any) -> Any:
    """The value of an ``nnx.Variable``, an array or the shape of one: ``get_value()``, before Flax 0.12 ``value``."""
    return variable.get_value() if hasattr(type(variable), "get_value") else variable.value


def enable_x64(enabled: bool = True) -> Any:
    """The context manager ``jax.enable_x64``, before JAX 0.8 in ``jax.experimental``."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    return importlib.import_module("jax.experimental").enable_x64(enabled)


def shutdown_timeout(seconds: int) -> dict[str, int]:
    """The argument of ``jax.distributed.initialize`` for how long processes wait for each other at the end.

    Empty before JAX 0.8, where it is five minutes.
    """
    accepted = inspect.signature(jax.distributed.initialize).parameters
    return {"shutdown_timeout_seconds": seconds} if "shutdown_timeout_seconds" in accepted else {}
