"""For which devices code is traced: those at hand or others, and which of them has which samples."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device: ``jax.Device.platform`` ("cpu", "tpu", "gpu") and ``jax.Device.device_kind``."""

    platform: str
    kind: str


_chosen: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def current() -> Target:
    """What :func:`compiling_for` was told, else JAX's default device."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    device = jax.devices()[0]
    return Target(device.platform, device.device_kind)


@contextlib.contextmanager
def compiling_for(device: jax.Device) -> Iterator[None]:
    """Within it, functions are traced for ``device``, which need not be attached (``jax.experimental.topologies``)."""
    token = _chosen.set(Target(device.platform, device.device_kind))
    try:
        yield
    finally:
        _chosen.reset(token)


_split: contextvars.ContextVar[tuple[Mesh, str] | None] = contextvars.ContextVar("split", default=None)


@contextlib.contextmanager
def samples_split(mesh: Mesh, axis: str) -> Iterator[None]:
    """Within it, functions are traced for batches that are split over the devices of ``mesh`` along ``axis``.

    XLA finds out by itself how to split what it compiles, but not how to split a kernel.
    """
    token = _split.set((mesh, axis))
    try:
        yield
    finally:
        _split.reset(token)


def split() -> tuple[Mesh, str] | None:
    """The mesh and the axis of it along which samples are split, or None where a device has all of them.

    Inside ``jax.shard_map``, a device's share is all there is.
    """
    chosen = None if jax.sharding.get_abstract_mesh().manual_axes else _split.get()
    return None if chosen is None or chosen[0].shape[chosen[1]] == 1 else chosen


def split_is_known() -> bool:
    """Whether :func:`split` tells the truth: there is one device, or somebody said how samples are split over them."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return bool(manual) or _split.get() is not None or _chosen.get() is not None or jax.device_count() == 1
