"""The ResNet family: ResNet, ResNeXt and wide ResNet, with whitening where the paper puts it.

Layouts are NHWC. Strides sit on the 3x3 convolution of a bottleneck ("v1.5"), padding is explicit everywhere
('SAME' pads differently for stride 2), and convolutions have no bias.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.models.linear import linear
from gw_jax.nn import make_norm
from gw_jax.nn.initializers import cached_when_abstract, normal
from gw_jax.ops.checks import accumulation_dtype
from gw_jax.versions import module_list, variable_value

Stem = Literal["imagenet", "small"]

# The norms of a network that are the chosen one; all others are BatchNorm. "1", "2", "3" are the norms of a bottleneck in
# order. A basic block has two: B1 and B2 are its first, B3 its second, and B12 both, as in the reference.
PLACEMENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "S1": ("stem",),
    "S1-B1": ("stem", "1"),
    "S1-B2": ("stem", "2"),
    "S1-B3": ("stem", "3"),
    "S1-B12": ("stem", "1", "2"),
    "all": ("stem", "1", "2", "3", "shortcut"),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes that distinguish the members of the family.

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
    "resnext101_64x4d": Architecture(True, (3, 4, 23, 3), groups=64, width_per_group=4),
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

    def conv(
        self, in_features: int, out_features: int, size: int, stride: int = 1, groups: int = 1, dilation: int = 1
    ) -> nnx.Conv:
        padding = dilation * (size - 1) // 2
        return nnx.Conv(
            in_features,
            out_features,
            (size, size),
            strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            kernel_dilation=(dilation, dilation),
            feature_group_count=groups,
            use_bias=False,
            # He initialisation over the fan-out; the fan-out of a grouped convolution counts all its outputs.
            kernel_init=normal(math.sqrt(2.0 / (size * size * out_features))),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """The sizes of one block; ``inner`` is the width of a bottleneck's 3x3 convolution."""

    in_features: int
    features: int
    inner: int
    stride: int
    groups: int
    dilation: int


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and -34."""

    def __init__(self, layers: _Layers, spec: BlockSpec):
        if spec.dilation != 1:
            raise ValueError("replace_stride_with_dilation needs bottleneck blocks: ResNet-50 or deeper.")
        first = "1" if "1" in layers.norms else "2"
        second = "2" if {"1", "2"} <= set(layers.norms) else "3"
        self.conv1 = layers.conv(spec.in_features, spec.features, 3, spec.stride)
        self.norm1 = layers.make_norm(first, spec.features)
        self.conv2 = layers.conv(spec.features, spec.features, 3)
        self.norm2 = layers.make_norm(second, spec.features)
        self.shortcut = _shortcut(layers, spec)

    @property
    def last_norm(self) -> nnx.Module:
        """The norm before the shortcut is added."""
        return self.norm2

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``."""
        y = self.norm1(self.conv1(x), relu=True)
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (perhaps in groups, with the stride) and 1x1 convolutions, and a shortcut."""

    def __init__(self, layers: _Layers, spec: BlockSpec):
        self.conv1 = layers.conv(spec.in_features, spec.inner, 1)
        self.norm1 = layers.make_norm("1", spec.inner)
        self.conv2 = layers.conv(spec.inner, spec.inner, 3, spec.stride, spec.groups, spec.dilation)
        self.norm2 = layers.make_norm("2", spec.inner)
        self.conv3 = layers.conv(spec.inner, spec.features, 1)
        self.norm3 = layers.make_norm("3", spec.features)
        self.shortcut = _shortcut(layers, spec)

    @property
    def last_norm(self) -> nnx.Module:
        """The norm before the shortcut is added."""
        return self.norm3

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``."""
        y = self.norm1(self.conv1(x), relu=True)
        y = self.norm2(self.conv2(y), relu=True)
        y = self.norm3(self.conv3(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Shortcut(nnx.Module):
    """A 1x1 convolution and a norm, where a block changes the number of channels or the resolution."""

    def __init__(self, layers: _Layers, spec: BlockSpec):
        self.conv = layers.conv(spec.in_features, spec.features, 1, spec.stride)
        self.norm = layers.make_norm("shortcut", spec.features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``."""
        return self.norm(self.conv(x))


def _shortcut(layers: _Layers, spec: BlockSpec) -> Shortcut | None:
    if spec.stride == 1 and spec.in_features == spec.features:
        return None
    return Shortcut(layers, spec)


def _zero_init(block: BasicBlock | Bottleneck) -> None:
    scale = getattr(block.last_norm, "scale", None)
    if scale is None:
        raise ValueError(
            "zero_init_residual sets the scale of each block's last norm to zero, but that norm has none "
            "(norm 'none' or 'in', or use_scale=False)."
        )
    if isinstance(variable_value(scale), jax.Array):  # Abstract arrays have no value.
        scale[...] = jnp.zeros_like(scale[...])


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
        replace_stride_with_dilation: tuple[bool, bool, bool],
        zero_init_residual: bool,
        last_norm: bool,
        apply_last_norm: bool,
        dropout: float,
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
        self.apply_last_norm = apply_last_norm
        self.stem_conv = layers.conv(in_channels, width, 7, 2) if stem == "imagenet" else layers.conv(in_channels, width, 3)
        self.stem_norm = layers.make_norm("stem", width)
        block = Bottleneck if architecture.bottleneck else BasicBlock
        make_block = cached_when_abstract(rngs, functools.partial(block, layers))
        in_features, dilation = width, 1
        stages = []
        for stage, size in enumerate(architecture.stage_sizes):
            planes = width * 2**stage
            features = planes * (4 if architecture.bottleneck else 1)
            inner = int(planes * architecture.width_per_group / 64) * architecture.groups
            if inner < 1:
                raise ValueError(
                    f"width={width} leaves no channels for the {architecture.groups} groups of the network's 3x3 "
                    f"convolutions; give at least {-(-64 // architecture.width_per_group)}."
                )
            stride, first_dilation = 1 if stage == 0 else 2, dilation
            if stage > 0 and replace_stride_with_dilation[stage - 1]:
                # The first block of the stage still sees its input at the old dilation.
                stride, dilation = 1, dilation * 2
            blocks: list[BasicBlock | Bottleneck] = []
            for index in range(size):
                spec = BlockSpec(
                    in_features=in_features,
                    features=features,
                    inner=inner,
                    stride=stride if index == 0 else 1,
                    groups=architecture.groups,
                    dilation=first_dilation if index == 0 else dilation,
                )
                blocks.append(make_block(spec))
                in_features = features
                if zero_init_residual:
                    _zero_init(blocks[-1])
            stages.append(module_list(blocks))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        # Like the last layer, in the parameters' precision, at least float32.
        head_dtype = accumulation_dtype(param_dtype)
        options = {**norm_options, "dtype": head_dtype, "param_dtype": param_dtype}
        self.last_norm = make_norm(norm, in_features, rngs=rngs, **options) if last_norm else None
        self.dropout = nnx.Dropout(dropout)
        self.head = linear(in_features, num_classes, dtype=head_dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Maps normalised images ``[n, h, w, in_channels]`` to logits ``[n, num_classes]``, at least float32.

        ``dropout_key`` is needed in training by a network that has dropout.

        Raises:
            ValueError: it is missing.
        """
        if dropout_key is None and self.dropout.rate > 0 and not self.dropout.deterministic:
            raise ValueError(
                f"A network with dropout={self.dropout.rate} needs model(images, dropout_key=jax.random.key(...)) in "
                "training. Call model.eval() first if this is evaluation."
            )
        # The key is an argument, so that the state of a network is parameters and statistics only.
        return self.head(self.dropout(self.features(images), rngs=dropout_key))

    def features(self, images: jax.Array) -> jax.Array:
        """Maps normalised images ``[n, h, w, in_channels]`` to the input of the last layer, ``[n, features]``."""
        x = images if self.dtype is None else images.astype(self.dtype)
        x = self.stem_norm(self.stem_conv(x), relu=True)
        if self.stem == "imagenet":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for block in stage:
                x = block(x)
        # Pooling and the last layers stay in the parameters' precision: they cost nothing and decide the logits.
        x = x.astype(self.head.dtype).mean((1, 2))
        return x if self.last_norm is None or not self.apply_last_norm else self.last_norm(x)
