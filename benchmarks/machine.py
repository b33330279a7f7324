"""The head of every result: on what it was measured."""

import importlib.metadata
import platform
from typing import Any

import jax


def describe(*packages: str) -> dict[str, Any]:
    """Platform, device and the versions of JAX and of ``packages``, as JSON values."""
    backend = jax.default_backend()
    return {
        "platform": backend,
        "device": platform.machine() if backend == "cpu" else jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", *packages)},
    }
