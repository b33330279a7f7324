"""The device that code is traced for, and how the batch is sharded over devices.

Both choose the kernel, so both are part of the key of ``jax.jit``'s caches: a function that was traced within one of these
contexts is traced again outside. Where the mesh has explicit axes, the sharding is read from the type of the array.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh, Mesh

from gw_jax.ops.sharding import explicit_sharding


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """A kind of device: ``jax.Device.platform`` ("cpu", "tpu", "gpu") and ``jax.Device.device_kind``."""

    platform: str
    kind: str


@dataclasses.dataclass(frozen=True)
class BatchSharding:
    """The first axis of an array is sharded over ``axes`` of ``mesh``; no other axis is."""

    mesh: Mesh | AbstractMesh
    axes: tuple[str, ...]

    @property
    def num_devices(self) -> int:
        """Devices among which the batch is divided."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


_compiling_for = jax.make_user_context(None)
_batch_sharding = jax.make_user_context(None)


def device_kind() -> DeviceKind:
    """The device of :func:`compiling_for`, else JAX's default device."""
    return attached_device_kind() if _compiling_for.value is None else _compiling_for.value


def attached_device_kind() -> DeviceKind:
    """JAX's default device."""
    device = jax.devices()[0]
    return DeviceKind(device.platform, device.device_kind)


def compiles_for_attached_device() -> bool:
    """Whether functions are traced for the device that is there, and not for another one by :func:`compiling_for`."""
    return _compiling_for.value is None or _compiling_for.value == attached_device_kind()


@contextlib.contextmanager
def compiling_for(device: jax.Device) -> Iterator[None]:
    """Within it, functions are traced for ``device``, which need not be attached (``jax.experimental.topologies``)."""
    with _compiling_for(DeviceKind(device.platform, device.device_kind)):
        yield


@contextlib.contextmanager
def batch_sharded_over(mesh: Mesh, axis: str) -> Iterator[None]:
    """Within it, functions are traced for batches that are sharded over ``axis`` of ``mesh``.

    For meshes with automatic axes, whose types do not hold it: XLA shards its own operations, but no kernel.
    """
    with _batch_sharding(BatchSharding(mesh, (axis,))):
        yield


def batch_sharding(x: jax.Array) -> BatchSharding | None:
    """The sharding of the batch ``x``, or None where every device has all of it and its type does not say so.

    Inside ``jax.shard_map``, the shard of a device is all there is.
    """
    explicit = explicit_sharding(x)
    if explicit is not None:
        axes = explicit.spec[0] or ()
        found = BatchSharding(explicit.mesh, axes if isinstance(axes, tuple) else (axes,))
    elif jax.sharding.get_abstract_mesh().manual_axes:
        return None
    else:
        found = _batch_sharding.value
    # An explicit axis of one device is a part of the array's type, and kernels have none.
    return None if found is None or not found.axes or (explicit is None and found.num_devices == 1) else found


def batch_sharding_known(x: jax.Array) -> bool:
    """Whether the sharding of ``x`` is known: from its type or a context, or because there is one device."""
    in_type = explicit_sharding(x) is not None or jax.sharding.get_abstract_mesh().manual_axes
    return bool(in_type) or _batch_sharding.value is not None or _compiling_for.value is not None or jax.device_count() == 1
