"""Compiling for NVIDIA cards on a machine without one.

    pip install "jax-cuda12-plugin==$JAX" "jax-cuda12-pjrt==$JAX" nvidia-cuda-nvcc-cu12  # $JAX: the version of jax

XLA compiles for the description of a card as it does for the card itself. Nothing runs and nothing is tuned: products are
cuBLAS's, as on a card with XLA's own ones switched off.
"""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from gw_jax.errors import ConfigError

# XLA's description of a card, as it makes one of an attached card.
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  core_count: {cores} fpus_per_core: {units}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared_block} shared_memory_per_core: {shared}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""
_GB = 10**9
_FIELDS = ("name", "major", "minor", "cores", "units", "threads", "shared_block", "shared", "cache", "clock")
_FIELDS += ("bandwidth", "memory")
_CARDS: dict[str, tuple[Any, ...]] = {
    "T4": ("Tesla T4", 7, 5, 40, 64, 1024, 65536, 65536, 4 << 20, 1.59, 320 * _GB, 16 * _GB),
    "A100": ("NVIDIA A100-SXM4-40GB", 8, 0, 108, 64, 2048, 166912, 167936, 40 << 20, 1.41, 1555 * _GB, 42 * _GB),
    "L4": ("NVIDIA L4", 8, 9, 58, 128, 1536, 101376, 102400, 48 << 20, 2.04, 300 * _GB, 24 * _GB),
    "H100": ("NVIDIA H100 80GB HBM3", 9, 0, 132, 128, 2048, 232448, 233472, 50 << 20, 1.98, 3352 * _GB, 85 * _GB),
    "H200": ("NVIDIA H200", 9, 0, 132, 128, 2048, 232448, 233472, 50 << 20, 1.98, 4800 * _GB, 149 * _GB),
}
CARDS = tuple(_CARDS)
NOT_INSTALLED = (
    "The compiler for CUDA is not installed; install jax-cuda12-plugin and jax-cuda12-pjrt of the version of jax, and "
    "nvidia-cuda-nvcc-cu12, or give the directory of ptxas with --cuda."
)


def find_cuda() -> pathlib.Path | None:
    """The directory of the package ``nvidia-cuda-nvcc-cu12``, which has ``bin/ptxas`` and ``nvvm/libdevice``."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else [pathlib.Path(place) / "cuda_nvcc" for place in spec.submodule_search_locations or []]
    return next((place for place in places if (place / "bin" / "ptxas").exists()), None)


def prepare(cuda: pathlib.Path | None, *flags: str) -> None:
    """Sets what XLA reads when it starts; before JAX makes an array.

    Args:
        cuda: what :func:`find_cuda` returns.
        flags: more flags of XLA.

    Raises:
        ConfigError: the compiler for CUDA is not installed.
    """
    if cuda is None or importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise ConfigError(NOT_INSTALLED)
    # Without a card XLA cannot choose tiles for its own products by trying, and its default does not fit all of them.
    flags = (f"--xla_gpu_cuda_data_dir={cuda}", "--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false", *flags)
    import jax

    jax.config.update("jax_platforms", "cpu")
    # It cannot hold programs of devices that are not there.
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ |= {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": " ".join(flags),
        "PATH": f"{cuda / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def device(card: str) -> Any:
    """One device of the kind ``card``, of :data:`CARDS`."""
    from jax.experimental import topologies

    description = _DESCRIPTION.format(**dict(zip(_FIELDS, _CARDS[card], strict=True)))
    return topologies.get_topology_desc("", platform="cuda", target_config=description, topology="1x1x1").devices[0]


@contextlib.contextmanager
def lowering_for(target: Any) -> Iterator[None]:
    """Within it, functions are traced and lowered for ``target``, which :func:`device` returned."""
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    from gw_jax.ops.kernels.placement import compiling_for

    # From JAX 0.12 on, the lowering of Pallas needs the card.
    card = AbstractDevice(target.device_kind, None, target.platform)
    with compiling_for(target), use_abstract_mesh(AbstractMesh((), (), abstract_device=card)):
        yield
