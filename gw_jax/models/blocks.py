"""The blocks of residual networks, with whitening where the paper puts it.

Layouts are NHWC. Strides sit on the 3x3 convolution of a bottleneck ("v1.5"), padding is explicit everywhere
('SAME' pads differently for stride 2), and convolutions have no bias.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.initializers import normal
from gw_jax.versions import variable_value


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the convolutions and norms of one network; ``norms`` says which of them are ``norm``, the chosen one."""

    norms: tuple[str, ...]
    norm: Callable[[int], nnx.Module]
    other_norm: Callable[[int], nnx.Module]
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: nnx.Rngs

    def make_norm(self, place: str, num_features: int) -> nnx.Module:
        """The norm for ``place``, such as "stem" or "2"."""
        return (self.norm if place in self.norms else self.other_norm)(num_features)

    def conv(
        self, in_features: int, out_features: int, size: int, stride: int = 1, groups: int = 1, dilation: int = 1
    ) -> nnx.Conv:
        """A convolution without bias whose padding keeps the resolution, but for its stride."""
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

    def __init__(self, layers: Layers, spec: BlockSpec):
        if spec.dilation != 1:
            raise ValueError(
                "Dilation (replace_stride_with_dilation, output_stride) needs bottleneck blocks: ResNet-50 or deeper."
            )
        first = "1" if "1" in layers.norms else "2"
        second = "2" if {"1", "2"} <= set(layers.norms) else "3"
        self.conv1 = layers.conv(spec.in_features, spec.features, 3, spec.stride)
        self.norm1 = layers.make_norm(first, spec.features)
        self.conv2 = layers.conv(spec.features, spec.features, 3)
        self.norm2 = layers.make_norm(second, spec.features)
        self.shortcut = make_shortcut(layers, spec)

    @property
    def last_norm(self) -> nnx.Module:
        """The norm before the shortcut is added."""
        return self.norm2

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, mask_after: jax.Array | None = None) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``.

        ``mask`` ``[n, h, w]`` is true where the input counts and is not zero, ``mask_after`` the same for the output.
        """
        del mask
        y = self.norm1(self.conv1(x), mask_after, relu=True)
        y = self.norm2(self.conv2(y), mask_after)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, mask_after)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (perhaps in groups, with the stride) and 1x1 convolutions, and a shortcut."""

    def __init__(self, layers: Layers, spec: BlockSpec):
        self.conv1 = layers.conv(spec.in_features, spec.inner, 1)
        self.norm1 = layers.make_norm("1", spec.inner)
        self.conv2 = layers.conv(spec.inner, spec.inner, 3, spec.stride, spec.groups, spec.dilation)
        self.norm2 = layers.make_norm("2", spec.inner)
        self.conv3 = layers.conv(spec.inner, spec.features, 1)
        self.norm3 = layers.make_norm("3", spec.features)
        self.shortcut = make_shortcut(layers, spec)

    @property
    def last_norm(self) -> nnx.Module:
        """The norm before the shortcut is added."""
        return self.norm3

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, mask_after: jax.Array | None = None) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``.

        ``mask`` ``[n, h, w]`` is true where the input counts and is not zero, ``mask_after`` the same for the output.
        """
        # A norm with a mask gives zeros outside: the padding of the 3x3 convolution.
        y = self.norm1(self.conv1(x), mask, relu=True)
        y = self.norm2(self.conv2(y), mask_after, relu=True)
        y = self.norm3(self.conv3(y), mask_after)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, mask_after)))


class Shortcut(nnx.Module):
    """A 1x1 convolution and a norm, where a block changes the number of channels or the resolution."""

    def __init__(self, layers: Layers, spec: BlockSpec):
        self.conv = layers.conv(spec.in_features, spec.features, 1, spec.stride)
        self.norm = layers.make_norm("shortcut", spec.features)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h / stride, w / stride, features]``; ``mask`` is the output's."""
        return self.norm(self.conv(x), mask)


def make_shortcut(layers: Layers, spec: BlockSpec) -> Shortcut | None:
    """The shortcut of a block, or None for the identity."""
    if spec.stride == 1 and spec.in_features == spec.features:
        return None
    return Shortcut(layers, spec)


def zero_scale_of_last_norm(block: BasicBlock | Bottleneck) -> None:
    """Sets the scale of the block's last norm to zero.

    Raises:
        ValueError: it has none.
    """
    scale = getattr(block.last_norm, "scale", None)
    if scale is None:
        raise ValueError(
            "zero_init_residual sets the scale of each block's last norm to zero, but that norm has none "
            "(norm 'none' or 'in', or use_scale=False)."
        )
    if isinstance(variable_value(scale), jax.Array):  # Abstract arrays have no value.
        scale[...] = jnp.zeros_like(scale[...])
