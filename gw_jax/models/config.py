"""The configuration of a network, and the arguments of ``create_model`` that follow from it."""

import dataclasses
from typing import Any, get_args

from gw_jax.config_checks import choice, number
from gw_jax.models.create_model import MNIST_NETWORKS
from gw_jax.models.resnet import ARCHITECTURES, Placement, Stem
from gw_jax.nn import NORM_NAMES, norm_options
from gw_jax.ops.options import Implementation

# Networks that a classifier's loss can train: an auto-encoder has no logits.
CLASSIFIERS = (*ARCHITECTURES, *(name for name in MNIST_NETWORKS if name != "autoencoder"))


@dataclasses.dataclass(slots=True, kw_only=True)
class NormConfig:
    """Options of a norm. None keeps the layer's default; options that the chosen norm does not have are ignored.

    Attributes:
        num_groups: channel groups of gw, gw_zca and gn.
        channels_per_group: channels of a group: the block size of iternorm, dbn and their sigma variants; for gw and
            gw_zca in place of ``num_groups``.
        num_iterations: Newton-Schulz iterations of gw, iternorm and iternorm_sigma (5 in the papers).
        epsilon: added to the diagonal of the covariance, or to the variance.
        momentum: decay of the running statistics of bn, iternorm and dbn, 0.9 for ``0.9 old + 0.1 new``.
        group_size: examples that share the batch statistics of bn, iternorm and dbn; None for the whole batch.
        use_scale: whether a learned per-channel scale follows.
        use_bias: whether a learned per-channel bias follows.
        implementation: how gw is computed; see :func:`gw_jax.group_whiten`. It changes speed only, and is not exported.

    Example:
        >>> from gw_jax.classification import NormConfig
        >>> NormConfig(num_groups=64, num_iterations=5).momentum is None
        True
    """

    num_groups: int | None = number(None, 1)
    channels_per_group: int | None = number(None, 1)
    num_iterations: int | None = number(None, 0)
    epsilon: float | None = number(None, 0)
    momentum: float | None = number(None, 0, 1)
    group_size: int | None = number(None, 1)
    use_scale: bool | None = None
    use_bias: bool | None = None
    implementation: str | None = choice(None, get_args(Implementation))


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The network; see :func:`gw_jax.create_model`. Fields that a network does not have are ignored.

    Attributes:
        name: a ResNet, mlp, mlp_norm_linear or lenet.
        norm: the norm that ``whiten`` places.
        norm_options: its options.
        whiten: placement of the norm: S1 is the stem, B1 to B3 the norms of each block.
        batch_norm_group_size: examples that share statistics in the BatchNorms elsewhere; None for the whole batch.
        stem: "imagenet" or "small".
        width: channels of the stem (64), or of the hidden layers of an MLP (100).
        depth: hidden layers of an MLP (4).
        last_norm: whether the norm also stands before the last layer.
        apply_last_norm: False keeps its parameters without using it, as in the reference's ResNeXt.
        dropout: probability of dropping a value before the last layer.
        replace_stride_with_dilation: whether the stages 2, 3 and 4 dilate instead of halving the resolution.
        zero_init_residual: whether the last norm of each block starts with a scale of zero.

    Example:
        >>> from gw_jax.classification import ModelConfig, NormConfig
        >>> ModelConfig(name="resnet18", norm_options=NormConfig(num_groups=8), stem="small", width=8).whiten
        'S1-B2'
    """

    name: str = choice("resnet50", CLASSIFIERS)
    norm: str = choice("gw", NORM_NAMES)
    norm_options: NormConfig = dataclasses.field(default_factory=NormConfig)
    whiten: str = choice("S1-B2", get_args(Placement))
    batch_norm_group_size: int | None = number(None, 1)
    stem: str = choice("imagenet", get_args(Stem))
    width: int | None = number(None, 1)
    depth: int | None = number(None, 1)
    last_norm: bool = False
    apply_last_norm: bool = True
    dropout: float = number(0.0, 0, 0.999999)
    replace_stride_with_dilation: tuple[bool, ...] = (False, False, False)
    zero_init_residual: bool = False


def chosen_norm_options(config: ModelConfig) -> dict[str, Any]:
    """The options set in ``config.norm_options`` that the chosen norm has."""
    known = norm_options(config.norm)
    options = dataclasses.asdict(config.norm_options)
    return {name: value for name, value in options.items() if value is not None and name in known}


def model_arguments(
    config: ModelConfig, *, num_classes: int, in_channels: int, image_size: int | None, batch_size: int | None = None
) -> dict[str, Any]:
    """The arguments of :func:`gw_jax.create_model` for ``config``, without types and generators; JSON values.

    Args:
        config: the network.
        num_classes: length of the logits.
        in_channels: channels of the images.
        image_size: edge of the images in pixels.
        batch_size: examples per forward pass in training. Layers whose examples share statistics in groups then keep the
            running statistics of every group; without it they keep one.
    """

    def with_sets(options: dict[str, Any]) -> dict[str, Any]:
        group_size = options.get("group_size")
        if group_size is None or batch_size is None:
            return options
        # At least one set: an imported model is also evaluated where the training batch is smaller than a group.
        return {**options, "statistics_sets": max(batch_size // group_size, 1)}

    common = {"name": config.name, "num_classes": num_classes, "in_channels": in_channels}
    norm = {"norm": config.norm, "norm_options": with_sets(chosen_norm_options(config))}
    if config.name == "lenet":
        return {**common, "image_size": image_size}
    if config.name in MNIST_NETWORKS:
        return {**common, **norm, "image_size": image_size, "depth": config.depth, "width": config.width}
    return {
        **common,
        **norm,
        "whiten": config.whiten,
        "batch_norm_options": with_sets({"group_size": config.batch_norm_group_size}),
        "stem": config.stem,
        "width": config.width,
        "replace_stride_with_dilation": list(config.replace_stride_with_dilation),
        "zero_init_residual": config.zero_init_residual,
        "last_norm": config.last_norm,
        "apply_last_norm": config.apply_last_norm,
        "dropout": config.dropout,
    }
