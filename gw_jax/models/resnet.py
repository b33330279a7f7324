"""The ResNet family: ResNet, ResNeXt and wide ResNet, with whitening where the paper puts it."""

import dataclasses
import functools
from typing import Any, Literal

import jax
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.errors import shown
from gw_jax.models.blocks import BasicBlock, BlockSpec, Bottleneck, Layers, zero_scale_of_last_norm
from gw_jax.models.linear import linear
from gw_jax.nn import AnyNormName, make_norm
from gw_jax.nn.initializers import cached_when_abstract
from gw_jax.ops.checks import accumulation_dtype
from gw_jax.ops.valid import select_valid, valid_mask
from gw_jax.versions import module_list

Stem = Literal["imagenet", "small"]
STEM_STRIDES: dict[Stem, int] = {"imagenet": 4, "small": 1}

# The norm at all places that are not those of ``whiten``.
OtherNorm = Literal["bn", "frozen_bn"]
Placement = Literal["none", "S1", "S1-B1", "S1-B2", "S1-B3", "S1-B12", "all"]
ResNetName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

# The norms of a network that are the chosen one; all others are its ``other_norm``. "1", "2", "3" are the norms of a
# bottleneck in order. A basic block has two: B1 and B2 are its first, B3 its second, and B12 both, as in the reference.
PLACEMENTS: dict[Placement, tuple[str, ...]] = {
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

    Example:
        >>> from gw_jax.models import Architecture
        >>> Architecture(True, (3, 4, 6, 3)).groups  # ResNet-50
        1
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


def dilation_for(stem: Stem, output_stride: int) -> tuple[bool, bool, bool]:
    """``replace_stride_with_dilation`` of the network whose last stage has the stride ``output_stride``.

    Raises:
        ValueError: no network with that stem has it.
    """
    allowed = [8 * STEM_STRIDES[stem] >> dilated for dilated in range(4)]
    if isinstance(output_stride, bool) or output_stride not in allowed:
        raise ValueError(
            f"output_stride={shown(output_stride)}; with stem={stem!r} it is {allowed[0]}, or with dilation one of "
            f"{', '.join(str(stride) for stride in allowed[1:])}."
        )
    dilated = allowed.index(output_stride)
    return dilated > 2, dilated > 1, dilated > 0


class ResNet(nnx.Module):
    """A residual network of four stages; :func:`gw_jax.create_model` makes it by name and states the arguments.

    Attributes:
        strides: of the outputs of the four stages to the images.

    Raises:
        ValueError: options that do not fit each other or the architecture.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> options = {"width": 8, "stem": "small", "norm_options": {"num_groups": 4}}
        >>> model = gw_jax.create_model("resnet18", **options, whiten="S1", rngs=nnx.Rngs(0))
        >>> type(model.stem_norm).__name__, type(model.stage1[0].norm1).__name__
        ('GroupWhitening', 'BatchNorm')
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int | None,
        norm: AnyNormName,
        norm_options: dict[str, Any],
        batch_norm_options: dict[str, Any],
        whiten: Placement,
        other_norm: OtherNorm,
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
        layers = Layers(
            norms=PLACEMENTS[whiten],
            norm=lambda features: make_norm(norm, features, **{**common, **norm_options}),
            other_norm=lambda features: make_norm(other_norm, features, **{**common, **batch_norm_options}),
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
        stages, strides = [], []
        scale = STEM_STRIDES[stem]
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
            scale *= stride
            strides.append(scale)
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
                    zero_scale_of_last_norm(blocks[-1])
            stages.append(module_list(blocks))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.strides = tuple(strides)
        # Like the last layer, in the parameters' precision, at least float32.
        self.head_dtype = accumulation_dtype(param_dtype)
        types: dict[str, Any] = {"dtype": self.head_dtype, "param_dtype": param_dtype}
        options = {**norm_options, **types}
        self.last_norm = make_norm(norm, in_features, rngs=rngs, **options) if last_norm else None
        self.dropout = nnx.Dropout(dropout)
        self.head = None if num_classes is None else linear(in_features, num_classes, **types, rngs=rngs)

    def __call__(self, images: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Maps normalised images ``[n, h, w, in_channels]`` to logits ``[n, num_classes]``, at least float32.

        ``dropout_key`` is needed in training by a network that has dropout.

        Raises:
            ValueError: it is missing, or the network has no last layer.
        """
        if self.head is None:
            raise ValueError(
                "The network was made with num_classes=None and has no last layer, so it has no logits; call its features "
                "or stages, or make it with a number of classes."
            )
        if dropout_key is None and self.dropout.rate > 0 and not self.dropout.deterministic:
            raise ValueError(
                f"A network with dropout={self.dropout.rate} needs model(images, dropout_key=jax.random.key(...)) in "
                "training. Call model.eval() first if this is evaluation."
            )
        # The key is an argument, so that the state of a network is parameters and statistics only.
        return self.head(self.dropout(self.features(images), rngs=dropout_key))

    def features(self, images: jax.Array) -> jax.Array:
        """Maps normalised images ``[n, h, w, in_channels]`` to the input of the last layer, ``[n, features]``."""
        x = self.stages(images)[-1]
        # Pooling and the last layers stay in the parameters' precision: they cost nothing and decide the logits.
        x = x.astype(self.head_dtype).mean((1, 2))
        return x if self.last_norm is None or not self.apply_last_norm else self.last_norm(x)

    def stages(
        self, images: jax.Array, valid: jax.Array | None = None, *, frozen_stages: int = 0, remat: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Maps normalised images ``[n, h, w, in_channels]`` to the outputs C2 to C5 of the four stages, after their ReLU.

        They are ``[n, h / s, w / s, channels]``, rounded up, at the strides ``s`` of :attr:`strides`: 4, 8, 16 and 32, or
        1, 2, 4 and 8 with the small stem, less where dilation replaces strides. The channels are the network's ``width``
        times 1, 2, 4 and 8, with bottlenecks times 4, 8, 16 and 32.

        With ``valid``, images of different sizes share a batch, each in the top left corner of its canvas ``h`` x ``w``. An
        image gets the values that it has by itself, with zero padding, and zeros outside; norms see its own positions only.

        Args:
            images: ``[n, h, w, in_channels]``.
            valid: integers ``[n, 2]``, height and width of each image in its canvas; None where images fill it. What
                stands outside is not used. The sizes of multiples of the last stride are exact.
            frozen_stages: through so many of the first stages, and the stem, no gradient flows.
            remat: whether the gradient recomputes the inside of each block of the other stages instead of keeping it: less
                memory for about a third more work. Not with norms that update running statistics.

        Raises:
            ValueError: ``valid`` is of another shape, or holds no integers.

        Example:
            >>> import gw_jax, jax.numpy as jnp
            >>> from flax import nnx
            >>> model = gw_jax.create_model("resnet18", norm="gn", width=32, rngs=nnx.Rngs(0))
            >>> [features.shape for features in model.stages(jnp.ones((1, 64, 64, 3)))]
            [(1, 16, 16, 32), (1, 8, 8, 64), (1, 4, 4, 128), (1, 2, 2, 256)]
        """

        def mask_of(stride: int) -> jax.Array | None:
            if valid is None:
                return None
            return valid_mask(valid, stride, *(-(-edge // stride) for edge in images.shape[1:3]))

        x = images if self.dtype is None else images.astype(self.dtype)
        # Normalised images are not black where they are 0.
        x = self.stem_conv(select_valid(x, mask_of(1)))
        x = self.stem_norm(x, mask_of(2 if self.stem == "imagenet" else 1), relu=True)
        if self.stem == "imagenet":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        mask = mask_of(STEM_STRIDES[self.stem])
        x = select_valid(x, mask)
        maps: list[jax.Array] = []
        for stride, stage in zip(self.strides, (self.stage1, self.stage2, self.stage3, self.stage4), strict=True):
            mask_after = mask_of(stride)
            recompute = remat and len(maps) >= frozen_stages
            for index, block in enumerate(stage):
                masks = () if valid is None else (mask if index == 0 else mask_after, mask_after)
                # The arrays of the block are closed over: nnx.remat would write them back, also where nothing may.
                run = jax.checkpoint(block.__call__) if recompute else block
                x = run(x, *masks)
            mask = mask_after
            if len(maps) < frozen_stages:
                x = jax.lax.stop_gradient(x)
            maps.append(x)
        return maps[0], maps[1], maps[2], maps[3]
