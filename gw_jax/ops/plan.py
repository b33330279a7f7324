"""The sizes that a kernel of Group Whitening is built for."""

import dataclasses
from typing import Literal

from gw_jax.ops.target import BatchSharding

KernelName = Literal["tpu_samples", "tpu_lane_tiles", "tpu_sublane_tiles", "gpu_whitening"]

# A TPU with less memory on the chip (v4) does not hold the iterations of eight samples at once.
SMALL_MEMORY = 32 << 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of a kernel.

    Attributes:
        positions: of a sample.
        channels: of a sample.
        num_groups: divides ``channels``.
        num_iterations: Newton-Schulz iterations, 2 or more.
        epsilon: added to the covariance's diagonal.
        kernel: the module that has it: :mod:`tpu_samples`, :mod:`tpu_tiles` (for one layout or the other) or
            :mod:`gpu_whitening`.
        tile: positions of a tile, for TPUs.
        memory: bytes on the chip that it may take, for TPUs.
        relu: whether the kernel takes ``max(., 0)`` of the output; those for GPUs can.
        interpret: whether the instructions run one by one on any device, which is slow and serves to test.
        sharding: how the batch is sharded; None where every device has all of it.
    """

    positions: int
    channels: int
    num_groups: int
    num_iterations: int
    epsilon: float
    kernel: KernelName
    tile: int = 0
    memory: int = 0
    relu: bool = False
    interpret: bool = False
    sharding: BatchSharding | None = None

    @property
    def channels_per_group(self) -> int:
        """``c / g``."""
        return self.channels // self.num_groups
