"""Versions of Python, the operating system and packages, read without importing them, and those that do not fit."""

import importlib
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
from collections.abc import Callable, Mapping

from gw_jax.doctor.report import Section

REQUIRED = ("jax", "jaxlib", "flax", "numpy", "safetensors")
PLUGINS = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt", "libtpu")
# Package: the extra that installs it, and what it is for.
OPTIONAL: Mapping[str, tuple[str, str]] = {
    "matplotlib": ("examples", "plots"),
    "optax": ("examples", "training"),
    "orbax-checkpoint": ("examples", "training"),
    "grain": ("examples", "training"),
    "tensorflow-datasets": ("examples", "data sets"),
    "torch": ("torch", "PyTorch checkpoints"),
    "flatbuffers": ("serving", "jax.export"),
    "huggingface_hub": ("hub", "models from a hub"),
}

VersionOf = Callable[[str], str | None]


def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_versions(section: Section) -> None:
    """Versions, and packages that do not fit each other."""
    section.add("Python", f"{platform.python_version()} ({sys.executable})")
    section.add("system", f"{platform.platform()}, {os.cpu_count()} CPU cores{_memory()}")
    section.add("gw_jax", f"{_own_version()} ({pathlib.Path(__file__).parents[1]})")
    for package in (*REQUIRED, *PLUGINS):
        found = version_of(package)
        if found or package in REQUIRED:
            section.add(package, found or "not installed")
    for package, (extra, purpose) in OPTIONAL.items():
        missing = f"not installed (for {purpose}): pip install 'gw_jax[{extra}]'"
        section.add(package, version_of(package) or missing)
    section.data = {package: version_of(package) for package in (*REQUIRED, *PLUGINS, *OPTIONAL)}
    section.problems += mismatches(version_of, importlib.metadata.requires("jax") or [] if version_of("jax") else [])


def mismatches(version_of: VersionOf, requirements: list[str]) -> list[str]:
    """What is wrong with the versions of JAX's parts.

    Args:
        version_of: gives the version of a package, or None where it is not installed.
        requirements: of the package jax, such as ``["jaxlib<=0.10.2,>=0.10.2"]``.
    """
    found: list[str] = []
    for package in ("jax", "jaxlib", "flax"):
        if version_of(package) is None:
            found.append(f"{package} is not installed. Run: pip install -U jax flax")
    jax, jaxlib = version_of("jax"), version_of("jaxlib")
    if jax is None or jaxlib is None:
        return found
    for requirement in requirements:
        if re.match(r"jaxlib(?![\w-])", requirement) and "extra" not in requirement and not _satisfies(jaxlib, requirement):
            found.append(
                f"jaxlib {jaxlib} does not fit jax {jax}, which requires {requirement}. Install them together: "
                f"pip install 'jax=={jax}' 'jaxlib=={jax}', then restart Python."
            )
    for cuda in ("12", "13"):
        plugin, pjrt = version_of(f"jax-cuda{cuda}-plugin"), version_of(f"jax-cuda{cuda}-pjrt")
        for name, version in ((f"jax-cuda{cuda}-plugin", plugin), (f"jax-cuda{cuda}-pjrt", pjrt)):
            if version is not None and _numbers(version) != _numbers(jaxlib):
                found.append(
                    f"{name} {version} does not fit jaxlib {jaxlib}: JAX ignores it and runs on the CPU, or fails. This is "
                    f"so after pip replaced jax and left the plugin. Install them together: "
                    f"pip install -U 'jax[cuda{cuda}]=={jax}', then restart Python. On Colab: Runtime > Disconnect and "
                    "delete runtime, then install gw_jax under the constraint of the notebooks, which keeps Colab's jax."
                )
        if (plugin is None) != (pjrt is None):
            missing = f"jax-cuda{cuda}-{'plugin' if plugin is None else 'pjrt'}"
            found.append(f"{missing} is not installed, its other half is. Run: pip install -U 'jax[cuda{cuda}]=={jax}'")
    return found


def _satisfies(version: str, requirement: str) -> bool:
    """Whether a version fits the bounds of a requirement; bounds of other forms are taken as fitting."""
    own = _numbers(version)
    for operator, bound in re.findall(r"(<=|>=|==|<|>)\s*(\d+(?:\.\d+)*)", requirement.split(";")[0]):
        other = _numbers(bound)
        fits = {"<=": own <= other, ">=": own >= other, "==": own == other, "<": own < other, ">": own > other}
        if not fits[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, numbers.group().split("."))) if numbers else ()


def _own_version() -> str:
    text = (pathlib.Path(__file__).parents[1] / "_version.py").read_text()
    found = re.search(r"\"([\d.]+\w*)\"", text)
    return found.group(1) if found else "unknown"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows.
        return ""
    return f", {total / 2**30:.1f} GiB of memory"


def check_imports(section: Section) -> None:
    """Whether the packages that everything needs can be imported."""
    # gw_jax itself is imported already, perhaps in part: see gw_jax/__init__.py.
    for name in ("numpy", "jax", "flax", "gw_jax.models", "gw_jax.convert", "gw_jax.analysis", "gw_jax.serving"):
        try:
            importlib.import_module(name)
        except BaseException as error:  # Broken packages raise anything.
            section.problems.append(f"import {name} fails: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            section.add(name, "fails")
            return  # The others fail for the same reason.
        section.add(name, "can be imported")
    from gw_jax.versions import no_kernels_because, untested

    section.notes += [note for note in (untested(), no_kernels_because()) if note]
