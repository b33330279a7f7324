"""The golden layers as NNX modules: names, options and layouts of the reference, translated."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

import gw_jax

DIRECTORY = pathlib.Path(__file__).parents[1] / "golden"
CASES = json.loads((DIRECTORY / "norms.json").read_text())
ARRAYS = np.load(DIRECTORY / "norms.npz")

_NAMES = {"IGWItN": "gw", "IGWSVD": "gw_zca", "BN": "bn", "GN": "gn"}


def make_layer(case: str) -> nnx.Module:
    """The layer of ``case`` in float64, with the parameters of the golden file."""
    entry = CASES[case]
    cfg, features, name = entry["cfg"], entry["C"], _NAMES[entry["norm"]]
    affine = cfg.get("affine", True)
    options = {"use_scale": affine, "use_bias": affine, "param_dtype": jnp.float64}
    if name != "bn":
        options["num_groups"] = features // cfg["num_channels"] if "num_channels" in cfg else cfg.get("num_groups", 32)
    if name == "gw":
        options["num_iterations"] = cfg.get("T", 5)
    if name == "bn":
        options["momentum"] = 1 - cfg.get("momentum", 0.1)
    layer = gw_jax.make_norm(name, features, rngs=nnx.Rngs(0), **options)
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        if affine:
            getattr(layer, ours)[...] = jnp.asarray(ARRAYS[f"{case}/param/{theirs}"].reshape(-1))
    return layer


def array(case: str, name: str) -> np.ndarray:
    """A golden activation or its gradient, channels last."""
    return np.moveaxis(ARRAYS[f"{case}/{name}"], 1, -1)


def has(case: str, name: str) -> bool:
    """Whether the file has an entry ``name`` for ``case``."""
    return f"{case}/{name}" in ARRAYS.files
