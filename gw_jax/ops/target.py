"""For which device code is traced: the one at hand, or another that it is compiled for ahead of time."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax


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
