"""The devices that JAX sees, and files that have to be writable."""

import os
import pathlib

from gw_jax.doctor.environment import version_of
from gw_jax.doctor.report import Section


def check_devices(section: Section) -> None:
    """Kinds, number and memory of the devices."""
    import jax

    devices = jax.devices()
    kinds = sorted({(device.platform, device.device_kind) for device in devices})
    for platform, kind in kinds:
        same = [device for device in devices if (device.platform, device.device_kind) == (platform, kind)]
        section.add(platform, f"{len(same)} x {kind}{_memory(same[0])}")
    if os.environ.get("JAX_PLATFORMS"):
        section.add("JAX_PLATFORMS", os.environ["JAX_PLATFORMS"])
    if jax.process_count() > 1:
        section.add("processes", jax.process_count())
    section.data = {"devices": [f"{platform}: {kind}" for platform, kind in kinds], "count": len(devices)}
    if kinds[0][0] == "cpu" and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        section.problems += unused_accelerators(pathlib.Path("/dev"))


def unused_accelerators(dev: pathlib.Path) -> list[str]:
    """Problems where an NVIDIA card is in the machine (``/dev/nvidia0``) and JAX runs on the CPU."""
    if not (dev / "nvidia0").exists():
        return []
    plugins = [name for name in ("jax-cuda12-plugin", "jax-cuda13-plugin") if version_of(name)]
    if not plugins:
        return ["This machine has an NVIDIA GPU, and JAX has no plugin for it. Run: pip install 'gw_jax[cuda]'"]
    return [
        f"This machine has an NVIDIA GPU and {plugins[0]} is installed, but JAX runs on the CPU. The reason is in the "
        "output of: python -c 'import jax; jax.devices(\"cuda\")'"
    ]


def _memory(device: object) -> str:
    try:
        limit = device.memory_stats()["bytes_limit"]  # type: ignore[attr-defined]
    except Exception:  # CPUs have no statistics, and plugins differ.
        return ""
    return f", {limit / 2**30:.1f} GiB of memory for JAX each"


def check_directories(section: Section) -> None:
    """Write access to the directories of data sets and compiled programs, where the trainer is installed."""
    import jax

    trainer = ("optax", "grain", "orbax-checkpoint", "tensorflow-datasets")
    missing = [name for name in trainer if version_of(name) is None]
    if missing:
        section.notes.append(f"The trainer is not installed ({', '.join(missing)}): pip install 'gw_jax[examples]'")
        return
    data = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    cache = jax.config.values["jax_compilation_cache_dir"]
    for label, name in (("data sets", data), ("compiled programs", cache), ("current directory", ".")):
        if name is None:
            section.add(label, "no directory; JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs")
        elif "://" in name:
            section.add(label, f"{name} (a bucket; not checked)")
        else:
            problem = not_writable(pathlib.Path(name).expanduser())
            section.add(label, f"{name} ({'writable' if problem is None else 'not writable'})")
            if problem is not None:
                section.problems.append(f"The directory of {label}: {problem}")


def not_writable(directory: pathlib.Path) -> str | None:
    """Why nothing can be written to a directory, which need not exist yet, or None."""
    existing = directory.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is no directory. Remove it, or choose another directory."
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} is not writable for this user. Change its permissions, or choose another directory."
    return None
