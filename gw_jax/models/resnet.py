"""The ResNet family: ResNet, ResNeXt and wide ResNet, with whitening where the paper puts it.

Layouts are NHWC. Strides sit on the 3x3 convolution of a bottleneck ("v1.5"), padding is explicit everywhere
('SAME' pads differently for stride 2), and convolutions have no bias.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn import make_norm

Stem = Literal["imagenet", "small"]

# Which norms of a network are the chosen one; all others are BatchNorm. "1", "2", "3" are the norms of a bottleneck in
# order. A basic block has two, and whitens the first for B1 and B2, the second for B3, as the reference does.
PLACEMENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "S1": ("stem",),
    "S1-B1": ("stem", "1"),
    "S1-B2": ("stem", "2"),
    "S1-B3": ("stem", "3"),
    "S1-B12": ("stem", "1", "2"),
    "all": ("stem", "1", "2", "3", "shortcut"),
}

MakeNorm = Callable[[str, int], nnx.Module]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What distinguishes the members of the family.

    ``width_per_group`` is the width of a bottleneck's 3x3 convolution, per group and per 64 planes.
    """

    bottleneck: bool
    stage_sizes: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(False, (2, 2, 2, 2)),
    "resnet34": Architecture(False, (3, 4, 6, 3)),
    "resnet50": Architecture(True, (3, 4, 6, 3)),
    "resnet101": Architecture(True, (3, 4, 23, 3)),
    "resnet152": Architecture(True, (3, 8, 36, 3)),
    "resnext50_32x4d": Architecture(True, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Architecture(True, (3, 4, 23, 3), groups=32, width_per_group=8),
    "wide_resnet50_2": Architecture(True, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Architecture(True, (3, 4, 23, 3), width_per_group=128),
}


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Makes the convolutions and norms of one network; ``norms`` says which of them are the chosen norm."""

    norms: tuple[str, ...]
    norm: Callable[[int], nnx.Module]
    batch_norm: Callable[[int], nnx.Module]
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: nnx.Rngs

    def make_norm(self, place: str, num_features: int) -> nnx.Module:
        return (self.norm if place in self.norms else self.batch_norm)(num_features)

    def conv(self, in_features: int, out_features: int, size: int, stride: int = 1, groups: int = 1) -> nnx.Conv:
        padding = (size - 1) // 2
        return nnx.Conv(
            in_features,
            out_features,
            (size, size),
            strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            feature_group_count=groups,
            use_bias=False,
            # He initialisation over the fan-out; the fan-out of a grouped convolution counts all its outputs.
            kernel_init=nnx.initializers.normal(math.sqrt(2.0 / (size * size * out_features))),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and -34. ``features`` channels come out."""

    def __init__(self, layers: _Layers, in_features: int, features: int, stride: int, groups: int, inner: int):
        del groups, inner
        first = "1" if "1" in layers.norms else "2"
        self.conv1 = layers.conv(in_features, features, 3, stride)
        self.norm1 = layers.make_norm(first, features)
        self.conv2 = layers.conv(features, features, 3)
        self.norm2 = layers.make_norm("3", features)
        self.shortcut = _shortcut(layers, in_features, features, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (``inner`` channels, perhaps in groups, with the stride) and 1x1 convolutions, and a shortcut."""

    def __init__(self, layers: _Layers, in_features: int, features: int, stride: int, groups: int, inner: int):
        self.conv1 = layers.conv(in_features, inner, 1)
        self.norm1 = layers.make_norm("1", inner)
        self.conv2 = layers.conv(inner, inner, 3, stride, groups)
        self.norm2 = layers.make_norm("2", inner)
        self.conv3 = layers.conv(inner, features, 1)
        self.norm3 = layers.make_norm("3", features)
        self.shortcut = _shortcut(layers, in_features, features, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Shortcut(nnx.Module):
    """A 1x1 convolution and a norm, where a block changes the number of channels or the resolution."""

    def __init__(self, layers: _Layers, in_features: int, features: int, stride: int):
        self.conv = layers.conv(in_features, features, 1, stride)
        self.norm = layers.make_norm("shortcut", features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``."""
        return self.norm(self.conv(x))


def _shortcut(layers: _Layers, in_features: int, features: int, stride: int) -> Shortcut | None:
    if stride == 1 and in_features == features:
        return None
    return Shortcut(layers, in_features, features, stride)


class ResNet(nnx.Module):
    """A residual network of four stages; :func:`gw_jax.create_model` makes it by name and states the arguments."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int,
        norm: str,
        norm_options: dict[str, Any],
        batch_norm_options: dict[str, Any],
        whiten: str,
        stem: Stem,
        width: int,
        in_channels: int,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        layers = _Layers(
            norms=PLACEMENTS[whiten],
            norm=lambda features: make_norm(norm, features, **{**common, **norm_options}),
            batch_norm=lambda features: make_norm("bn", features, **{**common, **batch_norm_options}),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.stem = stem
        self.dtype = dtype
        self.stem_conv = layers.conv(in_channels, width, 7, 2) if stem == "imagenet" else layers.conv(in_channels, width, 3)
        self.stem_norm = layers.make_norm("stem", width)
        in_features = width
        block = Bottleneck if architecture.bottleneck else BasicBlock
        stages = []
        for stage, size in enumerate(architecture.stage_sizes):
            planes = width * 2**stage
            features = planes * (4 if architecture.bottleneck else 1)
            inner = int(planes * architecture.width_per_group / 64) * architecture.groups
            blocks = []
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(layers, in_features, features, stride, architecture.groups, inner))
                in_features = features
            stages.append(nnx.List(blocks))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        bound = 1 / math.sqrt(in_features)
        self.head = nnx.Linear(
            in_features,
            num_classes,
            kernel_init=_uniform(bound),
            bias_init=_uniform(bound),
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images ``[n, h, w, in_channels]`` to logits ``[n, num_classes]``, at least float32."""
        x = images if self.dtype is None else images.astype(self.dtype)
        x = nnx.relu(self.stem_norm(self.stem_conv(x)))
        if self.stem == "imagenet":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for block in stage:
                x = block(x)
        # Pooling and the last layer stay in the parameters' precision: they cost nothing and decide the logits.
        return self.head(x.astype(self.head.param_dtype).mean((1, 2)))


def _uniform(bound: float) -> nnx.Initializer:
    """PyTorch's default for linear layers, weight and bias: uniform in ``[-bound, bound]``."""

    def initialise(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise
