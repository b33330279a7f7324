"""Networks by name."""

import inspect
from typing import Any, Unpack, get_args, overload

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.errors import unknown_name
from gw_jax.models.arguments import (
    AnyArguments,
    AutoEncoderName,
    ImageSizeArguments,
    LeNetName,
    MLPArguments,
    MLPName,
    Network,
    OutputStride,
    ResNetArguments,
)
from gw_jax.models.creation import remember_arguments
from gw_jax.models.mnist import MLP, AutoEncoder, LeNet
from gw_jax.models.reference_names import REFERENCE_MNIST, REFERENCE_RESNETS
from gw_jax.models.resnet import ARCHITECTURES, Architecture, OtherNorm, Placement, ResNet, ResNetName, Stem, dilation_for
from gw_jax.nn import AnyNormName
from gw_jax.ops.checks import require_integer

_TYPES = ("dtype", "param_dtype", "rngs")
_COMMON = ("name", "num_classes", "in_channels", *_TYPES)
# The arguments of the networks that are not residual, beside those that all have.
MNIST_NETWORKS: dict[str, tuple[str, ...]] = {
    "mlp": ("image_size", "depth", "width", "norm", "norm_options"),
    "mlp_norm_linear": ("image_size", "depth", "width", "norm", "norm_options"),
    "lenet": ("image_size",),
    "autoencoder": ("image_size",),
}
_MLP_ARGUMENTS = ("image_size", "depth")

# The reference's names that also state the placement of the norm: the network and the placement.
ALIASES = {name: meaning for name, meaning in REFERENCE_RESNETS.items() if name not in ARCHITECTURES}


def list_models() -> list[str]:
    """The names of :func:`create_model`: this project's, then those of the reference that differ from them.

    Example:
        >>> import gw_jax
        >>> [name for name in gw_jax.list_models() if name.startswith("wide")]
        ['wide_resnet50_2', 'wide_resnet101_2']
    """
    return [*ARCHITECTURES, *MNIST_NETWORKS, *ALIASES, *REFERENCE_MNIST]


def resolve_name(name: str, whiten: Placement | None) -> tuple[str, Placement | None]:
    """This project's name of the network called ``name``, and the placement: ``whiten``, else the one in the name.

    Raises:
        ValueError: an unknown name.
    """
    if name in REFERENCE_MNIST:
        return REFERENCE_MNIST[name], whiten
    if name in ALIASES:
        ours, placement = ALIASES[name]
        return ours, placement if whiten is None else whiten
    if name not in ARCHITECTURES and name not in MNIST_NETWORKS:
        known, few = list_models(), ", ".join(ARCHITECTURES)
        choices = f"one of {few}, or another name of gw_jax.list_models()"
        raise ValueError(unknown_name("name", name, known, choices=choices))
    return name, whiten


@overload
def create_model(name: ResNetName | Architecture, **arguments: Unpack[ResNetArguments]) -> ResNet: ...
@overload
def create_model(name: MLPName, **arguments: Unpack[MLPArguments]) -> MLP: ...
@overload
def create_model(name: LeNetName, **arguments: Unpack[ImageSizeArguments]) -> LeNet: ...
@overload
def create_model(name: AutoEncoderName, **arguments: Unpack[ImageSizeArguments]) -> AutoEncoder: ...
@overload
def create_model(name: str, **arguments: Unpack[AnyArguments]) -> Network: ...
@remember_arguments
def create_model(
    name: str | Architecture,
    *,
    num_classes: int | None = 1000,
    norm: AnyNormName = "gw",
    norm_options: dict[str, Any] | None = None,
    whiten: Placement | None = None,
    other_norm: OtherNorm = "bn",
    batch_norm_options: dict[str, Any] | None = None,
    stem: Stem = "imagenet",
    width: int | None = None,
    depth: int | None = None,
    in_channels: int | None = None,
    image_size: int = 28,
    output_stride: OutputStride | None = None,
    replace_stride_with_dilation: tuple[bool, bool, bool] = (False, False, False),
    zero_init_residual: bool = False,
    last_norm: bool = False,
    apply_last_norm: bool = True,
    dropout: float = 0.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> Network:
    """Makes the network called ``name``: ``model(images_nhwc) -> logits``; ``model.train()`` and ``model.eval()`` switch.

    Args:
        name: resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d,
            wide_resnet50_2, wide_resnet101_2; mlp, mlp_norm_linear, lenet, autoencoder. The reference's names that say
            more (``resnet_whiten_010n50``, ``resnext_forGN50_32x4d``, ...) determine ``whiten``, too. A name that both have
            is this project's: ``resnet50`` has the norm where ``whiten`` says, not in the stem only. An
            :class:`gw_jax.models.resnet.Architecture` makes a residual network that has no name.
        num_classes: length of the logits. None for a residual network without its last layer, for ``model.stages``.
        norm: the norm at the places of ``whiten``; a name of :func:`gw_jax.make_norm`.
        norm_options: its keyword arguments, such as ``{"num_groups": 64}``.
        whiten: where ``norm`` stands in a residual network: "S1" is the stem, "B1", "B2", "B3" the norms of
            each block. One of S1-B2 (the paper's choice), S1, S1-B1, S1-B3, S1-B12, all (shortcuts too), none. None for
            the placement in the reference's name, if ``name`` is one, else for "S1-B2". A placement that is given overrides
            the one in the name.
        other_norm: the norm everywhere else: "bn" (:class:`gw_jax.BatchNorm`) or "frozen_bn"
            (:class:`gw_jax.nn.FrozenBatchNorm`).
        batch_norm_options: its keyword arguments.
        stem: "imagenet" (7x7 convolution and max-pool, both of stride 2) or, for images of some 32 pixels, "small" (3x3
            convolution of stride 1).
        width: channels of the stem, 64 in the published networks (everything else scales with it), or of the hidden layers
            of an MLP, 100 in the reference.
        depth: hidden layers of an MLP, 4 in the reference.
        in_channels: channels of the images; 3, or 1 for the networks of the MNIST experiments.
        image_size: edge of the images in pixels, for the networks of the MNIST experiments. Residual networks accept any.
        output_stride: the stride of the last stage to the images, by dilation: 32, 16, 8 or 4, and with the small stem 8,
            4, 2 or 1; for networks of bottlenecks. None for what ``replace_stride_with_dilation`` gives.
        replace_stride_with_dilation: for each of the stages 2, 3 and 4 of bottlenecks, whether it keeps the resolution and
            dilates its convolutions instead.
        zero_init_residual: whether the last norm of every block starts with a scale of zero, the block as its shortcut.
        last_norm: whether ``norm`` also stands between pooling and the last layer (the reference's ``last_bn``).
        apply_last_norm: False keeps the parameters of ``last_norm`` but leaves it out of the computation, as the
            reference's ResNeXt does by mistake.
        dropout: probability with which a value before the last layer is dropped in training, which then needs
            ``model(images, dropout_key=key)``.
        dtype: type of the activations, such as ``jnp.bfloat16``; None for that of images and parameters together.
            The logits are of ``param_dtype``, at least float32.
        param_dtype: type of the parameters.
        rngs: the generators that initialise the parameters.

    Raises:
        ValueError: an unknown name, norm, placement or stem, an argument that this network does not have, or options that
            do not fit; the message lists the known ones.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> model = gw_jax.create_model("resnet18", num_classes=10, norm_options={"num_groups": 8}, stem="small", width=16,
        ...                             rngs=nnx.Rngs(0))
        >>> model.head.out_features, type(model.stem_norm).__name__
        (10, 'GroupWhitening')

    Source: He et al. (CVPR 2016), Xie et al. (CVPR 2017), Zagoruyko and Komodakis (BMVC 2016); placements and
    initialisation: Group Whitening (CVPR 2021), section 5.1, and the reference's ``ImageNet/models`` and ``Mnist``.
    """
    given = dict(locals())
    if not isinstance(name, Architecture):
        name, whiten = resolve_name(name, whiten)
    _refuse_other_networks_arguments(name, given)
    whiten = "S1-B2" if whiten is None else whiten
    for what, value, known in (
        ("whiten", whiten, get_args(Placement)), ("stem", stem, get_args(Stem)),
        ("other_norm", other_norm, get_args(OtherNorm)),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(unknown_name(what, value, known))
    for what, number in (
        ("num_classes", num_classes), ("width", width), ("depth", depth), ("in_channels", in_channels),
        ("image_size", image_size),
    ):  # fmt: skip
        if number is not None:
            require_integer(what, number, 1)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}; it is a probability, 0 to below 1.")
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    if name in MNIST_NETWORKS:
        require_integer("num_classes", num_classes, 1)
        return _mnist_network(name, given, types)
    if len(replace_stride_with_dilation) != 3:
        raise ValueError(
            f"replace_stride_with_dilation={replace_stride_with_dilation}; give three booleans, for stages 2, 3 and 4."
        )
    if output_stride is not None:
        dilated = dilation_for(stem, output_stride)
        if any(replace_stride_with_dilation) and tuple(replace_stride_with_dilation) != dilated:
            raise ValueError(
                f"output_stride={output_stride} means replace_stride_with_dilation={dilated}, but "
                f"{tuple(replace_stride_with_dilation)} was given; leave out one of them."
            )
        replace_stride_with_dilation = dilated
    return ResNet(
        name if isinstance(name, Architecture) else ARCHITECTURES[name],
        num_classes=num_classes,
        norm=norm,
        norm_options=norm_options or {},
        batch_norm_options=batch_norm_options or {},
        whiten=whiten,
        other_norm=other_norm,
        stem=stem,
        width=width or 64,
        in_channels=in_channels or 3,
        replace_stride_with_dilation=replace_stride_with_dilation,
        zero_init_residual=zero_init_residual,
        last_norm=last_norm,
        apply_last_norm=apply_last_norm,
        dropout=dropout,
        **types,
    )


def _mnist_network(name: str, given: dict[str, Any], types: dict[str, Any]) -> Any:
    image_size, in_channels, num_classes = given["image_size"], given["in_channels"] or 1, given["num_classes"]
    if name == "autoencoder":
        return AutoEncoder(image_size * image_size * in_channels, **types)
    if name == "lenet":
        return LeNet(image_size, in_channels=in_channels, num_classes=num_classes, **types)
    return MLP(
        (image_size, image_size, in_channels),
        depth=given["depth"] or 4,
        width=given["width"] or 100,
        num_classes=num_classes,
        norm=given["norm"],
        norm_options=given["norm_options"] or {},
        linear_after_norm=name == "mlp_norm_linear",
        **types,
    )


def _refuse_other_networks_arguments(name: str | Architecture, given: dict[str, Any]) -> None:
    """Raises ValueError if an argument that ``name`` does not have was set to another value than its default."""
    defaults = {key: p.default for key, p in inspect.signature(create_model).parameters.items()}
    if name in MNIST_NETWORKS:
        known = (*_COMMON, *MNIST_NETWORKS[name])
    else:
        known = tuple(key for key in defaults if key not in _MLP_ARGUMENTS)
    foreign = [key for key, default in defaults.items() if key not in known and given[key] != default]
    if foreign:
        listed = ", ".join(key for key in known if key not in ("name", "rngs"))
        raise ValueError(f"The network {name!r} does not have {', '.join(foreign)}; it accepts {listed}.")
