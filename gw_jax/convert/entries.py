"""The entries of the reference's state dicts and their arrays in our models: one table, read in both directions.

An :class:`Entry` holds a *view* of our array in the reference's axes. Reading a file assigns to the view and writing one
copies it, so the two directions cannot disagree. :func:`register` adds the entries of further model classes.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax import nnx

from gw_jax.models.blocks import BasicBlock, Bottleneck
from gw_jax.models.mnist import MLP, AutoEncoder, LeNet
from gw_jax.models.resnet import ResNet
from gw_jax.nn import (
    BatchNorm,
    BatchWhitening,
    FrozenBatchNorm,
    GroupNorm,
    GroupWhitening,
    Identity,
    InstanceNorm,
    LayerNorm,
)
from gw_jax.tree import variables

# Entries of a file that do not affect the function; they may be missing.
COUNTER = "num_batches_tracked"

# Metadata of a scale or bias: the shape that the file had, where the layer does not determine it.
TORCH_SHAPE = "torch_shape"

# The names of the reference's child modules and matrices, by method of batch whitening and kind of running matrix.
BATCH_WHITENING_NAMES: dict[tuple[str, str], tuple[str, str]] = {
    ("newton", "whitening"): ("iterNorm_Groups", "running_wm"),
    ("newton", "covariance"): ("iterNorm_Groups", "running_wm"),
    ("zca", "whitening"): ("DBN_Groups", "running_projection"),
    ("zca", "covariance"): ("DBNSigma_Groups", "running_projection"),
}

Array = Any  # A NumPy or JAX array, or the shape of one.
View = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a state dict.

    Attributes:
        key: its name there.
        shape: its shape there.
        path: our variable, by attribute names: "stage1.0.conv1.kernel".
        view: gives the part of that variable that the entry holds, in the entry's order of axes, without a copy.
        trained: whether it is a parameter, as opposed to a running statistic.
        constant: its value, if that is a constant of the network and no variable; the path is "" then.
    """

    key: str
    shape: tuple[int, ...]
    path: str
    view: View
    trained: bool = True
    constant: np.ndarray | None = None

    def write(self, variable: np.ndarray, value: np.ndarray) -> None:
        """Writes the entry's ``value`` into our ``variable``."""
        view = self.view(variable)
        view[...] = value.reshape(view.shape)

    def read(self, variable: np.ndarray) -> np.ndarray:
        """The entry's value in our ``variable``, as the file holds it."""
        value = np.array(self.view(variable), order="C").reshape(self.shape)
        return value.astype(np.int64) if self.key.endswith(COUNTER) else value


# Makes the entries of one module. Its entries' keys start with ``key`` and its variables' paths with ``path``, both "" or
# ending in a dot. ``dim`` is the number of axes of the module's input.
MakeEntries = Callable[[Any, str, str, int], Iterator[Entry]]
_MAKE_ENTRIES: dict[type, MakeEntries] = {}


def register(*classes: type) -> Callable[[MakeEntries], MakeEntries]:
    """Makes the decorated function give the entries of modules of ``classes`` and of classes derived from them."""

    def add(make: MakeEntries) -> MakeEntries:
        _MAKE_ENTRIES.update(dict.fromkeys(classes, make))
        return make

    return add


def entries(module: nnx.Module, key: str = "", path: str = "", dim: int = 4) -> Iterator[Entry]:
    """The entries of the reference's state dict of ``module``, in its order, made one by one.

    Args:
        module: a network of :func:`gw_jax.create_model`, a norm, or another registered class; arrays may be abstract.
        key: where the module's entries are in the state dict: "" or a prefix that ends in a dot.
        path: where its variables are in the model: "" or a prefix that ends in a dot.
        dim: axes of its input, on which the shape of a whitening norm's scale and bias depends in the reference.

    Raises:
        ValueError: the reference has no such module.
    """
    for kind in type(module).__mro__:
        if kind in _MAKE_ENTRIES:
            return _MAKE_ENTRIES[kind](module, key, path, dim)
    raise ValueError(f"The reference has no module like {type(module).__name__}.")


def to_torch_state(module: nnx.Module) -> "OrderedDict[str, np.ndarray]":
    """The state dict that the reference would have for ``module``: its names, shapes, order and types.

    Args:
        module: a network of :func:`gw_jax.create_model`, or a norm. The ``scale`` and ``bias`` of a single whitening norm
            come out as ``[1, c, 1, 1]``, or as :func:`norm_from_torch` found them.

    Raises:
        ValueError: the reference has no such module.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> state = gw_jax.convert.to_torch_state(gw_jax.make_norm("gw", 8, num_groups=4, rngs=nnx.Rngs(0)))
        >>> {name: array.shape for name, array in state.items()}
        {'weight': (1, 8, 1, 1), 'bias': (1, 8, 1, 1)}
    """
    arrays = variables(module)
    # One variable at a time is copied from its device: batch-whitening layers have several entries per variable.
    state: OrderedDict[str, np.ndarray] = OrderedDict()
    path, array = "", np.empty(())
    for entry in entries(module):
        if entry.constant is not None:
            state[entry.key] = entry.constant.copy()
            continue
        if entry.path != path:
            path, array = entry.path, np.asarray(arrays[entry.path])
        state[entry.key] = entry.read(array)
    return state


def kernel_entry(key: str, path: str, kernel: Array) -> Entry:
    """The weight of a convolution: ``o i h w`` there, ``h w i o`` here."""
    height, width, inputs, outputs = kernel.shape
    return Entry(f"{key}weight", (outputs, inputs, height, width), f"{path}kernel", lambda v: v.transpose(3, 2, 0, 1))


def vector_entry(key: str, path: str, shape: tuple[int, ...], *, trained: bool = True) -> Entry:
    """An entry with the same order of values in both."""
    return Entry(key, shape, path, lambda v: v, trained)


@register(nnx.Linear)
def _linear(layer: Any, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield from linear_entries(layer, key, path)


def linear_entries(layer: Any, key: str, path: str, image_shape: tuple[int, int, int] | None = None) -> Iterator[Entry]:
    """A linear layer. ``image_shape`` ``(h, w, c)``: its inputs are flattened images, in the order ``c h w`` there."""
    inputs, outputs = layer.kernel.shape

    def view(v: np.ndarray) -> np.ndarray:
        return v.T if image_shape is None else v.reshape(*image_shape, outputs).transpose(3, 2, 0, 1)

    yield Entry(f"{key}weight", (outputs, inputs), f"{path}kernel", view)
    if layer.bias is not None:
        yield vector_entry(f"{key}bias", f"{path}bias", (outputs,))


@register(nnx.Conv)
def _conv(layer: Any, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield kernel_entry(key, path, layer.kernel)
    if layer.bias is not None:
        yield vector_entry(f"{key}bias", f"{path}bias", layer.bias.shape)


@register(Identity)
def _identity(norm: Identity, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield from ()


def _scale_and_bias(norm: Any, key: str, path: str, shape: tuple[int, ...]) -> Iterator[Entry]:
    if (norm.scale is None) != (norm.bias is None):
        raise ValueError(
            f"The norm {path.rstrip('.') or type(norm).__name__} has only one of scale and bias; the reference has "
            "both or neither."
        )
    if norm.scale is not None:
        for torch_name, name in (("weight", "scale"), ("bias", "bias")):
            found = getattr(norm, name).get_metadata().get(TORCH_SHAPE, shape)
            yield vector_entry(f"{key}{torch_name}", f"{path}{name}", found)


@register(GroupNorm, InstanceNorm, LayerNorm)
def _per_sample_norm(norm: Any, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield from _scale_and_bias(norm, key, path, (norm.num_features,))


@register(GroupWhitening)
def _group_whitening(norm: GroupWhitening, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield from _scale_and_bias(norm, key, path, (1, norm.num_features, *(1,) * (dim - 2)))


@register(BatchNorm)
def _batch_norm(norm: BatchNorm, key: str, path: str, dim: int) -> Iterator[Entry]:
    shape = (norm.num_features,)
    yield from _scale_and_bias(norm, key, path, shape)
    yield vector_entry(f"{key}running_mean", f"{path}mean", shape, trained=False)
    yield vector_entry(f"{key}running_var", f"{path}var", shape, trained=False)
    yield vector_entry(f"{key}{COUNTER}", f"{path}{COUNTER}", (), trained=False)


@register(FrozenBatchNorm)
def _frozen_batch_norm(norm: FrozenBatchNorm, key: str, path: str, dim: int) -> Iterator[Entry]:
    for torch_name, name in (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var")):
        yield vector_entry(f"{key}{torch_name}", f"{path}{name}", (norm.num_features,), trained=False)


@register(BatchWhitening)
def _batch_whitening(norm: BatchWhitening, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield from _group_whitening(norm, key, path, dim)
    child, matrix = BATCH_WHITENING_NAMES[norm.method, norm.running]
    size = norm.channels_per_group
    for group in range(norm.num_groups):
        first = group * size
        channels = min(size, norm.num_features - first)

        def mean_view(v: np.ndarray, first: int = first, channels: int = channels) -> np.ndarray:
            return v[first : first + channels]

        def matrix_view(v: np.ndarray, group: int = group, channels: int = channels) -> np.ndarray:
            return v[group, :channels, :channels]

        name = f"{key}{child}.{group}."
        yield Entry(f"{name}running_mean", (channels, 1), f"{path}mean", mean_view, trained=False)
        yield Entry(f"{name}{matrix}", (channels, channels), f"{path}matrix", matrix_view, trained=False)


@register(BasicBlock, Bottleneck)
def _block(block: Any, key: str, path: str, dim: int) -> Iterator[Entry]:
    for position in (1, 2, 3):
        if hasattr(block, f"conv{position}"):
            yield from entries(getattr(block, f"conv{position}"), f"{key}conv{position}.", f"{path}conv{position}.")
            yield from entries(getattr(block, f"norm{position}"), f"{key}bn{position}.", f"{path}norm{position}.")
    if block.shortcut is not None:
        yield from entries(block.shortcut.conv, f"{key}downsample.0.", f"{path}shortcut.conv.")
        yield from entries(block.shortcut.norm, f"{key}downsample.1.", f"{path}shortcut.norm.")


@register(ResNet)
def _resnet(model: ResNet, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield from entries(model.stem_conv, f"{key}conv1.", f"{path}stem_conv.")
    yield from entries(model.stem_norm, f"{key}bn1.", f"{path}stem_norm.")
    for number in range(1, 5):
        for index, block in enumerate(getattr(model, f"stage{number}")):
            yield from entries(block, f"{key}layer{number}.{index}.", f"{path}stage{number}.{index}.")
    if model.last_norm is not None:
        yield from entries(model.last_norm, f"{key}last_bn.", f"{path}last_norm.", dim=2)
    if model.head is not None:
        yield from linear_entries(model.head, f"{key}fc.", f"{path}head.")


@register(MLP)
def _mlp(model: MLP, key: str, path: str, dim: int) -> Iterator[Entry]:
    stride = 3 if model.linears_after_norm is None else 4
    depth = len(model.linears)
    for index in range(depth):
        first = 1 + stride * index
        image = model.image_shape if index == 0 else None
        yield from linear_entries(model.linears[index], f"{key}net.{first}.", f"{path}linears.{index}.", image)
        yield from entries(model.norms[index], f"{key}net.{first + 1}.", f"{path}norms.{index}.", dim=2)
        if model.linears_after_norm is not None:
            after = model.linears_after_norm[index]
            yield from linear_entries(after, f"{key}net.{first + 2}.", f"{path}linears_after_norm.{index}.")
    yield from linear_entries(model.head, f"{key}net.{1 + stride * depth}.", f"{path}head.")


@register(LeNet)
def _lenet(model: LeNet, key: str, path: str, dim: int) -> Iterator[Entry]:
    yield from entries(model.conv1, f"{key}net.0.", f"{path}conv1.")
    yield from entries(model.conv2, f"{key}net.3.", f"{path}conv2.")
    channels = model.conv2.kernel.shape[-1]
    edge = round((model.linear1.kernel.shape[0] / channels) ** 0.5)
    yield from linear_entries(model.linear1, f"{key}net.7.", f"{path}linear1.", (edge, edge, channels))
    yield from linear_entries(model.linear2, f"{key}net.9.", f"{path}linear2.")
    yield from linear_entries(model.head, f"{key}net.11.", f"{path}head.")


@register(AutoEncoder)
def _autoencoder(model: AutoEncoder, key: str, path: str, dim: int) -> Iterator[Entry]:
    raise ValueError("The reference's auto-encoder never ran, so there is no checkpoint format for it.")
