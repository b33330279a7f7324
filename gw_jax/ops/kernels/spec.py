"""The sizes that a kernel of Group Whitening is built for."""

import dataclasses
from typing import Literal

from gw_jax.ops.kernels.placement import BatchSharding

KernelName = Literal[
    "tpu_resident",
    "tpu_lane_tiles",
    "tpu_sublane_tiles",
    "tpu_position_tiles",
    "tpu_column_tiles",
    "gpu_triton",
    "gpu_split",
]

# A TPU with less on-chip memory (v4) does not hold the iterations of eight samples at once.
SMALL_MEMORY = 32 << 20


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """The sizes of a kernel.

    Attributes:
        positions: number of positions of a sample.
        channels: number of channels of a sample.
        num_groups: divides ``channels``.
        num_iterations: Newton-Schulz iterations, 2 or more.
        epsilon: added to the covariance's diagonal.
        kernel: the module that implements it: :mod:`tpu_resident`, :mod:`tpu_tiled` (in one of four layouts),
            :mod:`gpu_triton` or :mod:`gpu_split`.
        tile: positions per tile, for TPUs and :mod:`gpu_split`; rows of the image where ``columns`` is given.
        columns: of the image, for TPU kernels of few large images.
        parts: programs among which a sample is divided, for sums and for the rest, for :mod:`gpu_split`.
        capability: compute capability of the card, times ten, for :mod:`gpu_split`.
        memory: bytes of on-chip memory that it may use, for TPUs.
        relu: whether the kernel applies ``max(., 0)`` to the output; only those for GPUs do.
        interpret: whether the instructions run one by one on any device, which is slow and serves the tests. This field
            decides it for all kernels.
        sharding: how the batch is sharded; None where every device has all of it.
    """

    positions: int
    channels: int
    num_groups: int
    num_iterations: int
    epsilon: float
    kernel: KernelName
    tile: int = 0
    columns: int = 0
    parts: tuple[int, int] = (1, 1)
    capability: int = 0
    memory: int = 0
    relu: bool = False
    interpret: bool = False
    sharding: BatchSharding | None = None

    @property
    def takes_mask(self) -> bool:
        """Whether the kernel has a mask ``[n, h, w]`` as its last argument."""
        return self.kernel in ("tpu_position_tiles", "tpu_column_tiles")

    @property
    def channels_per_group(self) -> int:
        """``c / g``."""
        return self.channels // self.num_groups
