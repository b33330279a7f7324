"""The bridge to the reference's PyTorch checkpoints: ``.pth`` files to models, and back.

On the command line: ``python -m gw_jax.convert IN.pth OUT_DIR`` and ``python -m gw_jax.convert OUT_DIR OUT.pth``. PyTorch
is needed to read and write ``.pth`` files, and only for that: the extra ``torch``.
"""

from gw_jax.convert.entries import to_torch_state
from gw_jax.convert.load import load_torch, norm_from_torch
from gw_jax.convert.torch_file import write_torch_file

__all__ = ["load_torch", "norm_from_torch", "to_torch_state", "write_torch_file"]
