"""The golden networks as state dicts, and as the files that the reference would have written."""

import argparse
import json
import pathlib
import zlib
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np

from gw_jax.convert import load
from gw_jax.convert.entries import entries
from gw_jax.convert.state_dict import StateDict
from gw_jax.convert.torch_file import TorchFile
from gw_jax.models.remembered import abstract_model

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NETWORKS = json.loads((GOLDEN / "models" / "state_dicts.json").read_text())
# A state dict of an MLP with one hidden layer and group whitening.
MLP = [
    ["net.1.weight", [8, 784]], ["net.1.bias", [8]], ["net.2.weight", [1, 8]], ["net.2.bias", [1, 8]],
    ["net.4.weight", [10, 8]], ["net.4.bias", [10]],
]  # fmt: skip


def reproducible_array(key, shape, seed, dtype=np.float32):
    """One entry of a state dict; it depends on the seed, the key and its shape only."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.array(1000 + seed, np.int64)
    if leaf == "running_var":
        array = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("running_wm", "running_projection"):
        factor = rng.standard_normal(shape) / np.sqrt(shape[-1])
        array = np.eye(shape[-1]) * 0.5 + factor @ factor.T
    elif leaf in ("running_mean", "bias"):
        array = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 4 and shape[0] > 1:
        array = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif len(shape) == 2 and shape[0] > 1:
        array = rng.standard_normal(shape) / np.sqrt(shape[1])
    else:
        array = rng.uniform(0.2, 0.6, shape)
    return array.astype(dtype)


def make_state(entries, seed=0):
    """The state dict of ``[[key, shape], ...]``, float32."""
    return OrderedDict((key, reproducible_array(key, tuple(shape), seed)) for key, shape in entries)


def golden_state(case):
    """The state dict of a golden network."""
    return make_state(NETWORKS[case]["entries"], NETWORKS[case]["seed"] or 0)


def arguments(case):
    """The arguments of a user who knows the network."""
    return {name: NETWORKS[case][name] for name in ("arch", "norm", "norm_cfg", "arch_cfg")}


def in_memory(state, training=None):
    """``state`` as if it had been read from a file, so that PyTorch is not needed."""
    return TorchFile("0" * 64, "legacy", StateDict(dict(state)), training)


def write_pth(path, state, *, kind="best", container="legacy", prefix="", momentum=False, **extra):
    """Writes ``state`` as the reference does: bare ("best"), or in a training dict ("checkpoint")."""
    import torch

    tensors = OrderedDict((prefix + key, torch.from_numpy(np.array(value))) for key, value in state.items())
    content = tensors
    if kind == "checkpoint":
        trained = [v for k, v in tensors.items() if v.is_floating_point() and "running" not in k]
        parameters = [torch.nn.Parameter(v) for v in trained]
        # The second, empty group is there in the reference, too.
        groups = [{"params": parameters, "weight_decay": 1e-4}, {"params": [], "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        if momentum:
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = 0.5 * parameter.detach()
        content = {
            "model": tensors,
            "cfg": argparse.Namespace(batch_size=[256, 256], im_size=(224, 224), best_prec1=torch.tensor(77.72), **extra),
            "optimizer": optimizer.state_dict(),
            "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30, 0.1).state_dict(),
            "epoch": 41,
            "best_prec1": torch.tensor(77.72),
            "arch": extra.get("arch", ""),
        }
    torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    return path


# Options with which every norm of the reference works on the widths of the small networks below.
NORM_CFG = {
    "IGWItN": {"T": 5, "num_groups": 4},
    "IGWSVD": {"num_groups": 4},
    "GN": {"num_groups": 4},
    "ItN": {"T": 5, "num_channels": 6},
    "ItNSigma": {"T": 3, "num_channels": 6},
    "DBN": {"num_channels": 6},
    "DBNSigma": {"num_channels": 6},
}


def interpret(state, training=None, **arguments):
    """The network of a state dict, as if it had been read from a file with these arguments."""
    return load.load_state(in_memory(state, training), "file.pth", load.LoadOptions(**arguments))


def state_of(name, **arguments):
    """A state dict with the entries of the network ``name``."""
    model = abstract_model({"name": name, **arguments}, None, jnp.float32)
    return make_state([(entry.key, entry.shape) for entry in entries(model)])


def small(name, norm="IGWItN", **arguments):
    """Arguments of a network of a few thousand parameters."""
    width = 16 if name == "resnext50_32x4d" else 8
    common = {"name": name, "num_classes": 5, "width": width, "norm": norm, "norm_options": NORM_CFG.get(norm, {})}
    return {**common, **arguments}
