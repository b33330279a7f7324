"""The bridge to the reference's PyTorch checkpoints: ``.pth`` files to models, and back.

On the command line: ``python -m gw_jax.convert IN.pth OUT_DIR`` and ``python -m gw_jax.convert OUT_DIR OUT.pth``. PyTorch
is needed to read and write ``.pth`` files, and only for that: the extra ``torch``.
"""

from gw_jax.convert.layout import to_torch_state
from gw_jax.convert.norms import norm_from_torch
from gw_jax.convert.reading import load_torch
from gw_jax.convert.torch_file import write_torch_file
from gw_jax.models.pretrained import load_pretrained, save_pretrained

__all__ = [
    "load_pretrained",
    "load_torch",
    "norm_from_torch",
    "save_pretrained",
    "to_torch_state",
    "write_torch_file",
]
