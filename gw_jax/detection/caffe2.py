"""Backbones from Caffe2's ``.pkl`` files, such as the ResNeXt-101 from which one of the reference's rows started."""

import collections
import dataclasses
import hashlib
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from gw_jax.convert.entries import entries
from gw_jax.convert.file_errors import file_errors
from gw_jax.convert.fill import fill, listed
from gw_jax.convert.keys import Keys
from gw_jax.convert.residual_network import ResidualNetwork, identify_residual_network
from gw_jax.detection.array_pickle import read_array_pickle
from gw_jax.detection.pixels import BGR
from gw_jax.errors import CheckpointError
from gw_jax.models.pretrained import write_directory
from gw_jax.models.remembered import abstract_model
from gw_jax.tree import variables

_CONVOLUTIONS = {"2a": "conv1", "2b": "conv2", "2c": "conv3", "1": "downsample.0"}
_NORMS = {"2a": "bn1", "2b": "bn2", "2c": "bn3", "1": "downsample.1"}
_BLOCK = re.compile(r"res([2-5])_(\d{1,4})_branch(2[abc]|1)_(?:(w|b)|(?:bn|gn)_(s|b))")
_STEM = {
    "conv1_w": "conv1.weight", "conv1_b": "conv1.bias",
    "res_conv1_bn_s": "bn1.weight", "res_conv1_bn_b": "bn1.bias", "conv1_gn_s": "bn1.weight", "conv1_gn_b": "bn1.bias",
}  # fmt: skip
_CLASSIFIER = ("pred_w", "pred_b", "fc1000_w", "fc1000_b")
_BIAS_OF_CONVOLUTION = re.compile(r"(.*\.)?(conv\d|downsample\.0)\.bias")
# The groups of group normalisation in Caffe2's models.
_GN_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class Caffe2Backbone:
    """A backbone read from a file.

    Attributes:
        model_config: the arguments of :func:`gw_jax.create_model` that make it.
        arrays: its arrays, by path.
        sha256: the file's checksum.
        used: names of the file's arrays that were read.
        left_out: the others, by the rule that leaves them out.
    """

    model_config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sha256: str
    used: list[str]
    left_out: dict[str, list[str]]

    def __str__(self) -> str:
        """The report, one fact per line."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.model_config.items() if key != "name")
        return "\n".join(
            [
                f"sha256        {self.sha256}",
                f"architecture  {self.model_config['name']}",
                f"arguments     {arguments}",
                f"pixels        {BGR}",
                f"keys          {len(self.used)} used",
                *(f"left out      {len(names)}, {rule}: {listed(names, 3)}" for rule, names in self.left_out.items()),
            ]
        )


def read_caffe2(path: str | pathlib.Path) -> Caffe2Backbone:
    """The residual network in a ``.pkl`` file of Caffe2's Detectron, without its classifier.

    Batch normalisation is already folded in such a file: ``y = s * x + b`` with ``s`` and ``b`` per channel. It becomes
    frozen batch normalisation of mean 0 and variance 1 without epsilon, the same function. Images must be normalised as
    :data:`gw_jax.detection.pixels.BGR` says.

    Args:
        path: the file, a pickle of Python 2 or 3 with arrays by name, perhaps under "blobs". Nothing else is unpickled.

    Raises:
        CheckpointError: it is missing, damaged, asks for anything but arrays, or is no such network: each array must be
            used, or left out by one of the rules in ``left_out``.

    Source: the reference's ``utils/c2_model_loading.py`` (names), and its ``FrozenBatchNorm2d``.
    """
    path = pathlib.Path(path).expanduser()
    content = read_array_pickle(path)
    with file_errors(str(path)):
        return _backbone(path, content)


def _backbone(path: pathlib.Path, content: dict[str, Any]) -> Caffe2Backbone:
    blobs = content["blobs"] if isinstance(content.get("blobs"), dict) else content
    state, names, left_out = _renamed(blobs, str(path))
    network = identify_residual_network(Keys({key: value.shape for key, value in state.items()}))
    if network is None or network.name is None:
        raise CheckpointError(
            f"{path} holds no residual network of Caffe2: there is no 'res2_0_branch2a_w', but {listed(list(blobs))}."
        )
    has_gn = any("_gn_" in name for name in names.values())
    _check_stride(path, network, has_gn=has_gn)
    model_config = {"name": network.name, "num_classes": None, **_norms(has_gn=has_gn), **network.options}
    model = abstract_model(model_config, None, jnp.float32)
    table = list(entries(model))
    for entry in table:
        if entry.key.endswith((".running_mean", ".running_var")):
            # Folded into scale and bias. The shape is that of the norm's scale, so that a wrong one is reported.
            state[entry.key] = np.full(entry.shape, float(entry.key.endswith("var")), np.float32)
    arrays = fill(table, state, variables(model), str(path))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Caffe2Backbone(model_config, arrays, sha256, list(names.values()), left_out)


def _norms(*, has_gn: bool) -> dict[str, Any]:
    if has_gn:
        return {"norm": "gn", "norm_options": {"num_groups": _GN_GROUPS}, "whiten": "all"}
    return {"norm": "frozen_bn", "whiten": "all", "other_norm": "frozen_bn"}


def _check_stride(path: pathlib.Path, network: ResidualNetwork, *, has_gn: bool) -> None:
    """Raises CheckpointError for a network that computes something else with the same arrays."""
    if network.architecture.groups == 1 and not has_gn:
        raise CheckpointError(
            f"{path} holds {network.name} with folded batch normalisation. Caffe2's models of that kind have the stride in "
            "the first 1x1 convolution of a block, the networks here in the 3x3 convolution: the result would be another. "
            "Its ResNeXts and its models with group normalisation are supported; for this network use one of PyTorch."
        )


def _renamed(blobs: dict[str, Any], source: str) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, list[str]]]:
    """The arrays of the network under the names of PyTorch, their names in the file, and the names that are left out."""
    state: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    left_out: dict[str, list[str]] = collections.defaultdict(list)
    unknown = []
    for name, value in blobs.items():
        key = _key_of(name)
        if name.endswith("_momentum"):
            left_out["momentum of the optimiser"].append(name)
        elif name in _CLASSIFIER:
            left_out["the classifier"].append(name)
        elif key is None or not isinstance(value, np.ndarray):
            unknown.append(name)
        elif _BIAS_OF_CONVOLUTION.fullmatch(key):
            kind = "not zero, and the reference leaves them out, too" if np.any(value) else "zero"
            left_out[f"biases of convolutions before a norm, {kind}"].append(name)
        elif key in state:
            raise CheckpointError(f"{source} holds {name} and {names[key]}, and the network has only one of them.")
        else:
            state[key], names[key] = value, name
    if unknown:
        raise CheckpointError(
            f"{source} holds {len(unknown)} entries that are no arrays of a residual network of Caffe2: {listed(unknown)}. "
            "The backbone of a detector is needed, with names like 'conv1_w' and 'res2_0_branch2a_bn_s'."
        )
    return state, names, dict(left_out)


def _key_of(name: str) -> str | None:
    """The name in PyTorch's ResNets of the array that Caffe2 calls ``name``; None if it is not one of a ResNet."""
    if name in _STEM:
        return _STEM[name]
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    stage, block, branch, part, part_of_norm = found.groups()
    layer = (_NORMS if part is None else _CONVOLUTIONS)[branch]
    suffix = "bias" if "b" in (part, part_of_norm) else "weight"
    return f"layer{int(stage) - 1}.{int(block)}.{layer}.{suffix}"


def write_backbone(directory: str | pathlib.Path, backbone: Caffe2Backbone, path: str | pathlib.Path) -> None:
    """Writes a backbone for :func:`gw_jax.load_pretrained` and for the start of a detector's training.

    Args:
        directory: the new directory.
        backbone: from :func:`read_caffe2`.
        path: the file that it came from, for ``config.json``.

    Raises:
        CheckpointError: ``directory`` exists, or cannot be written.
    """
    source = {"path": str(path), "sha256": backbone.sha256, "kind": "Caffe2", "pixels": BGR.to_json()}
    write_directory(directory, backbone.arrays, backbone.model_config, source=source, training=None)
