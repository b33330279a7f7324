"""Weights of ImageNet models for the backbone of a detector."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax.convert.entries import COUNTER, entries
from gw_jax.convert.fill import listed
from gw_jax.detection.detector import Detector, require_detector
from gw_jax.detection.pixels import Pixels, pixels_of
from gw_jax.detection.torch_state import check_variances
from gw_jax.errors import CheckpointError, one_line, shown
from gw_jax.models import ResNet
from gw_jax.models.remembered import abstract_model, changed_norms
from gw_jax.models.saved_files import MODEL, MODEL_FILE, read_arrays, read_config
from gw_jax.nn import BatchNorm, FrozenBatchNorm
from gw_jax.tree import map_by_path, variables

# Where the backbone is in a detector.
PREFIX = "backbone."


@dataclasses.dataclass(frozen=True)
class BackboneWeights:
    """The arrays of an ImageNet model that are those of a detector's backbone.

    Attributes:
        arrays: by the detector's paths.
        used: names of the reference's entries that were read.
        left_out: the others, by the rule that leaves them out.
        pixels: how images must be normalised.
    """

    arrays: dict[str, np.ndarray]
    used: list[str]
    left_out: dict[str, list[str]]
    pixels: Pixels

    def __str__(self) -> str:
        """The report, one fact per line."""
        total = len(self.used) + sum(map(len, self.left_out.values()))
        return "\n".join(
            [
                f"keys          {len(self.used)} of {total} used",
                *(f"left out      {len(names)}, {rule}: {listed(names, 3)}" for rule, names in self.left_out.items()),
                f"pixels        {self.pixels}",
            ]
        )


def read_backbone(directory: str | pathlib.Path, detector: Detector) -> BackboneWeights:
    """Reads the weights of an ImageNet model for the backbone of ``detector``.

    Batch norms become frozen ones with the same four arrays; the detector's epsilon is not theirs, as in the reference.
    Every array of the backbone is filled. Of the model only the classifier, the norm before it and the counters of batch
    norms are left out.

    Args:
        directory: written by ``python -m gw_jax.convert``, ``python -m gw_jax.detection.convert`` (Caffe2's files) or
            :func:`gw_jax.save_pretrained`.
        detector: the detector, whose arrays may be abstract.

    Raises:
        CheckpointError: the directory is damaged, or holds a detector or another network than the backbone; or variances
            are near zero where the detector's frozen batch norms have no epsilon.

    Source: the reference's ``utils/model_serialization.py`` (which names are matched), without its silent losses.
    """
    directory = pathlib.Path(directory).expanduser()
    description = read_config(directory)
    try:
        model = abstract_model(description[MODEL], None, jnp.float32)
    except Exception as error:  # The file decides which of create_model's errors comes.
        raise CheckpointError(f"The network of {directory} cannot be made: {one_line(str(error))}") from error
    if not isinstance(model, ResNet):
        raise CheckpointError(f"{directory} holds a {type(model).__name__}, and the backbone is a residual network.")
    _check_same(model, detector.backbone, str(directory), description[MODEL])
    arrays = read_arrays(directory, MODEL_FILE, variables(model))
    expected = variables(detector.backbone)
    names = {entry.path: entry.key for entry in entries(model)}
    check_variances(detector.backbone, arrays, names, str(directory))
    left_out: dict[str, list[str]] = {}
    for path, name in names.items():
        if path not in expected:
            left_out.setdefault(_rule(path), []).append(name)
    filled = {f"{PREFIX}{path}": arrays[path].astype(leaf.dtype, copy=False) for path, leaf in expected.items()}
    used = [name for path, name in names.items() if path in expected]
    return BackboneWeights(filled, used, left_out, pixels_of(description, str(directory)))


def load_backbone(detector: Detector, directory: str | pathlib.Path) -> BackboneWeights:
    """Writes the weights of an ImageNet model into the backbone of ``detector``; see :func:`read_backbone`.

    Returns:
        The report: what was used and left out, and how images must be normalised.

    Raises:
        CheckpointError: as :func:`read_backbone`; the detector is unchanged then.
        ConfigError: ``detector`` is none.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> from gw_jax.detection import create_detector, load_backbone
        >>> model = gw_jax.create_model("resnet18", num_classes=10, width=8, norm="bn", rngs=nnx.Rngs(0))
        >>> gw_jax.save_pretrained("models/imagenet", model)
        >>> detector = create_detector("resnet18", norm="frozen_bn", width=8, fpn_features=8, rngs=nnx.Rngs(1))
        >>> print(load_backbone(detector, "models/imagenet"))
        keys          100 of 122 used
        left out      20, counters of batch norms: bn1.num_batches_tracked, layer1.0.bn1.num_batches_tracked, ...
        left out      2, the classifier: fc.weight, fc.bias
        pixels        RGB, mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375]
    """
    require_detector(detector, "load_backbone")
    weights = read_backbone(directory, detector)

    def array_of(path: str, leaf: Any) -> Any:
        return jnp.asarray(weights.arrays[f"{PREFIX}{path}"], leaf.dtype)

    state = nnx.to_pure_dict(nnx.state(detector.backbone, (nnx.Param, nnx.BatchStat)))
    nnx.update(detector.backbone, map_by_path(array_of, state))
    return weights


def _rule(path: str) -> str:
    """The rule that leaves out the array ``path`` of a model."""
    part, leaf = path.split(".")[0], path.split(".")[-1]
    if leaf == COUNTER:
        return "counters of batch norms"
    return {"head": "the classifier", "last_norm": "the norm before the classifier"}[part]


def _check_same(model: ResNet, backbone: ResNet, source: str, arguments: dict[str, Any]) -> None:
    """Raises CheckpointError unless the stages of ``model`` compute what ``backbone`` does with the same arrays."""
    here, there = variables(backbone), variables(model)
    wrong = [path for path, leaf in here.items() if path not in there or there[path].shape != leaf.shape]
    wrong += [path for path in there if path not in here and not _may_be_left_out(path)]
    if wrong:
        raise CheckpointError(
            f"{source} holds another network than the detector's backbone: {listed(wrong)} are missing, left over or of "
            f"another shape ({len(wrong)} in all). Choose backbone and norm of the detector after the model: "
            f"{shown(arguments, 300)}."
        )
    norms = changed_norms(backbone, model)
    others = {path: norm for path, norm in norms.items() if not _is_same_frozen(norm, _at(model, path))}
    if others:
        path, norm = next(iter(others.items()))
        raise CheckpointError(
            f"{source} has other norms than the detector's backbone: {path} is {_described(_at(model, path))} there and "
            f"{_described(norm)} here ({len(others)} in all). Choose norm and norm_options of the detector after the model."
        )
    those = _convolutions(model)
    if convolutions := [path for path, conv in _convolutions(backbone).items() if conv != those[path]]:
        raise CheckpointError(
            f"{source} has other strides or dilations than the detector's backbone: {listed(convolutions)}. Choose a model "
            "without dilation."
        )


def _may_be_left_out(path: str) -> bool:
    return path.startswith(("head.", "last_norm.")) or path.endswith(f".{COUNTER}")


def _is_same_frozen(norm: nnx.Module, there: Any) -> bool:
    """Whether the frozen ``norm`` stands for ``there``."""
    if not isinstance(norm, FrozenBatchNorm):
        return False
    return isinstance(there, BatchNorm) or (isinstance(there, FrozenBatchNorm) and there.epsilon == norm.epsilon)


def _at(model: nnx.Module, path: str) -> Any:
    """The module at ``path``, such as "stage1/0/norm2"."""
    node: Any = model
    for name in path.split("/"):
        node = node[int(name)] if name.isdigit() else getattr(node, name)
    return node


def _described(norm: Any) -> str:
    options = ("num_groups", "num_iterations", "epsilon")
    values = [f"{name}={getattr(norm, name)}" for name in options if hasattr(norm, name)]
    return f"{type(norm).__name__}({', '.join(values)})"


def _convolutions(model: nnx.Module) -> dict[str, tuple[Any, ...]]:
    """What convolutions compute, apart from their kernels, by path."""
    return {
        ".".join(map(str, path)): (node.strides, node.padding, node.kernel_dilation, node.feature_group_count)
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Conv)
    }
