"""Which entry of a reference's state dict is which array of a model: one table, read in both directions.

An :class:`Entry` holds a *view* of our array in the reference's axes. Reading a file assigns to the view and writing one
copies it, so the two directions cannot disagree.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flax import nnx

from gw_jax.models.mnist import MLP, AutoEncoder, LeNet
from gw_jax.models.resnet import ResNet
from gw_jax.nn import BatchNorm, BatchWhitening, GroupNorm, GroupWhitening, Identity, LayerNorm
from gw_jax.tree import variables

# Entries of a file that say nothing about the function; they may be missing.
COUNTER = "num_batches_tracked"

# The names of the reference's child modules and matrices, by method of batch whitening and kind of running matrix.
BATCH_WHITENING_NAMES: dict[tuple[str, str], tuple[str, str]] = {
    ("newton", "whitening"): ("iterNorm_Groups", "running_wm"),
    ("newton", "covariance"): ("iterNorm_Groups", "running_wm"),
    ("zca", "whitening"): ("DBN_Groups", "running_projection"),
    ("zca", "covariance"): ("DBNSigma_Groups", "running_projection"),
}

ROWS_AT_ONCE = 16

Array = Any  # A NumPy or JAX array, or the shape of one.


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a state dict.

    Attributes:
        key: its name there.
        shape: its shape there.
        path: our variable, by attribute names: "stage1.0.conv1.kernel".
        view: gives the part of that variable that the entry holds, in the entry's order of axes, without a copy.
        trained: whether it is a parameter, as opposed to a running statistic.
    """

    key: str
    shape: tuple[int, ...]
    path: str
    view: Callable[[np.ndarray], np.ndarray]
    trained: bool = True

    def put(self, variable: np.ndarray, value: np.ndarray) -> None:
        """Writes the entry's ``value`` into our ``variable``."""
        target = self.view(variable)
        value = value.reshape(target.shape)
        if value.ndim < 2:
            target[...] = value
            return
        # A few rows at a time stay in the cache while their axes change places: half the time for a large matrix.
        for start in range(0, len(value), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            target[rows] = value[rows]

    def take(self, variable: np.ndarray) -> np.ndarray:
        """The entry's value, as the file holds it."""
        value = np.array(self.view(variable), order="C").reshape(self.shape)
        return value.astype(np.int64) if self.key.endswith(COUNTER) else value


def entries(model: nnx.Module) -> list[Entry]:
    """The entries of the reference's state dict of ``model``, in its order.

    ``model`` is a network of :func:`gw_jax.create_model` or a single norm; arrays may be abstract.

    Raises:
        ValueError: the reference has no such module.
    """
    if isinstance(model, ResNet):
        return list(_resnet(model))
    if isinstance(model, MLP):
        return list(_mlp(model))
    if isinstance(model, LeNet):
        return list(_lenet(model))
    if isinstance(model, AutoEncoder):
        raise ValueError("The reference's auto-encoder never ran, so there is no checkpoint format for it.")
    # What norm_from_torch noted down; the reference shapes scale and bias after the input, whose axes a norm does not know.
    return list(_norm(model, "", "", getattr(model, "reference_dim", 4)))


def to_torch_state(module: nnx.Module) -> "OrderedDict[str, np.ndarray]":
    """The state dict that the reference would have for ``module``: its names, shapes, order and types.

    Args:
        module: a network of :func:`gw_jax.create_model`, or a norm. The ``scale`` and ``bias`` of a single whitening norm
            come out as ``[1, c, 1, 1]``, or as :func:`norm_from_torch` found them.

    Raises:
        ValueError: the reference has no such module.
    """
    arrays = variables(module)
    # One variable at a time leaves its device: batch-whitening layers have several entries for one.
    state: OrderedDict[str, np.ndarray] = OrderedDict()
    path, array = "", np.empty(())
    for entry in entries(module):
        if entry.path != path:
            path, array = entry.path, np.asarray(arrays[entry.path])
        state[entry.key] = entry.take(array)
    return state


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _kernel(key: str, path: str, kernel: Array) -> Entry:
    height, width, inputs, outputs = kernel.shape
    return Entry(f"{key}.weight", (outputs, inputs, height, width), f"{path}.kernel", lambda v: v.transpose(3, 2, 0, 1))


def _linear(key: str, path: str, layer: Any, image: tuple[int, int, int] | None = None) -> Iterator[Entry]:
    """``image`` ``(h, w, c)`` says that the layer sees flattened images, whose order differs: ``c h w`` there."""
    inputs, outputs = layer.kernel.shape

    def view(v: np.ndarray) -> np.ndarray:
        return v.T if image is None else v.reshape(*image, outputs).transpose(3, 2, 0, 1)

    yield Entry(f"{key}.weight", (outputs, inputs), f"{path}.kernel", view)
    yield Entry(f"{key}.bias", (outputs,), f"{path}.bias", lambda v: v)


def _conv_with_bias(key: str, path: str, layer: Any) -> Iterator[Entry]:
    yield _kernel(key, path, layer.kernel)
    yield Entry(f"{key}.bias", layer.bias.shape, f"{path}.bias", lambda v: v)


def _norm(norm: Any, key: str, path: str, dim: int = 4) -> Iterator[Entry]:
    if isinstance(norm, Identity):
        return
    whitening = isinstance(norm, (GroupWhitening, BatchWhitening))
    if not whitening and not isinstance(norm, (BatchNorm, GroupNorm, LayerNorm)):
        raise ValueError(f"The reference has no module like {type(norm).__name__}.")
    if (norm.scale is None) != (norm.bias is None):
        raise ValueError(
            f"The norm {path or type(norm).__name__} has only one of scale and bias; the reference has both or neither."
        )
    features = norm.num_features
    affine = (1, features, *(1,) * (dim - 2)) if whitening else (features,)
    if norm.scale is not None:
        for theirs, ours in (("weight", "scale"), ("bias", "bias")):
            yield Entry(_dotted(key, theirs), affine, _dotted(path, ours), lambda v: v)
    if isinstance(norm, BatchNorm):
        for theirs, ours in (("running_mean", "mean"), ("running_var", "var")):
            yield Entry(_dotted(key, theirs), (features,), _dotted(path, ours), lambda v: v, trained=False)
        yield Entry(_dotted(key, COUNTER), (), _dotted(path, COUNTER), lambda v: v, trained=False)
    if isinstance(norm, BatchWhitening):
        yield from _batch_whitening_statistics(norm, key, path)


def _batch_whitening_statistics(norm: BatchWhitening, key: str, path: str) -> Iterator[Entry]:
    child, matrix = BATCH_WHITENING_NAMES[norm.method, norm.running]
    size = norm.channels_per_group
    for group in range(norm.num_groups):
        first = group * size
        channels = min(size, norm.num_features - first)

        def mean_view(v: np.ndarray, first: int = first, channels: int = channels) -> np.ndarray:
            return v[first : first + channels]

        def matrix_view(v: np.ndarray, group: int = group, channels: int = channels) -> np.ndarray:
            return v[group, :channels, :channels]

        name = _dotted(key, f"{child}.{group}")
        yield Entry(f"{name}.running_mean", (channels, 1), _dotted(path, "mean"), mean_view, trained=False)
        yield Entry(f"{name}.{matrix}", (channels, channels), _dotted(path, "matrix"), matrix_view, trained=False)


def _resnet(model: ResNet) -> Iterator[Entry]:
    yield _kernel("conv1", "stem_conv", model.stem_conv.kernel)
    yield from _norm(model.stem_norm, "bn1", "stem_norm")
    for number in range(1, 5):
        for index, block in enumerate(getattr(model, f"stage{number}")):
            key, path = f"layer{number}.{index}", f"stage{number}.{index}"
            for position in (1, 2, 3):
                if hasattr(block, f"conv{position}"):
                    yield _kernel(
                        f"{key}.conv{position}", f"{path}.conv{position}", getattr(block, f"conv{position}").kernel
                    )
                    yield from _norm(getattr(block, f"norm{position}"), f"{key}.bn{position}", f"{path}.norm{position}")
            if block.shortcut is not None:
                yield _kernel(f"{key}.downsample.0", f"{path}.shortcut.conv", block.shortcut.conv.kernel)
                yield from _norm(block.shortcut.norm, f"{key}.downsample.1", f"{path}.shortcut.norm")
    if model.last_norm is not None:
        yield from _norm(model.last_norm, "last_bn", "last_norm", dim=2)
    yield from _linear("fc", "head", model.head)


def _mlp(model: MLP) -> Iterator[Entry]:
    stride = 3 if model.linears_after_norm is None else 4
    depth = len(model.linears)
    for index in range(depth):
        first = 1 + stride * index
        image = model.image_shape if index == 0 else None
        yield from _linear(f"net.{first}", f"linears.{index}", model.linears[index], image)
        yield from _norm(model.norms[index], f"net.{first + 1}", f"norms.{index}", dim=2)
        if model.linears_after_norm is not None:
            yield from _linear(f"net.{first + 2}", f"linears_after_norm.{index}", model.linears_after_norm[index])
    yield from _linear(f"net.{1 + stride * depth}", "head", model.head)


def _lenet(model: LeNet) -> Iterator[Entry]:
    yield from _conv_with_bias("net.0", "conv1", model.conv1)
    yield from _conv_with_bias("net.3", "conv2", model.conv2)
    channels = model.conv2.kernel.shape[-1]
    edge = round((model.linear1.kernel.shape[0] / channels) ** 0.5)
    yield from _linear("net.7", "linear1", model.linear1, (edge, edge, channels))
    yield from _linear("net.9", "linear2", model.linear2)
    yield from _linear("net.11", "head", model.head)


def trained_keys(table: Iterable[Entry]) -> list[Entry]:
    """The parameters of ``table`` in the order of PyTorch's ``model.parameters()``."""
    return [entry for entry in table if entry.trained]
