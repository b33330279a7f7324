"""Published peak figures of accelerators: arithmetic, memory bandwidth and memory size."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peak of one device (one TPU chip, one GPU).

    Attributes:
        flops: dense bfloat16 operations per second, without sparsity.
        bandwidth: bytes per second between the chip and its memory.
        memory: bytes of that memory.
    """

    flops: float
    bandwidth: float
    memory: float


# By ``jax.Device.device_kind``, from the makers' data sheets. "TPU v4" is a device of two cores, as JAX shows it.
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip(275e12, 1228e9, 32e9),
    "TPU v5 lite": Chip(197e12, 819e9, 16e9),
    "TPU v5": Chip(459e12, 2765e9, 95e9),
    "TPU v6 lite": Chip(918e12, 1640e9, 32e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 1555e9, 40e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2039e9, 80e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3350e9, 80e9),
    "NVIDIA H200": Chip(989e12, 4800e9, 141e9),
}
