"""The arguments of ``create_model`` for each kind of network, as types."""

from typing import Any, Literal, Required, TypedDict

from flax import nnx
from jax.typing import DTypeLike

from gw_jax.models.mnist import MLP, AutoEncoder, LeNet
from gw_jax.models.resnet import OtherNorm, Placement, ResNet, Stem
from gw_jax.nn import AnyNormName

Network = ResNet | MLP | LeNet | AutoEncoder
MLPName = Literal["mlp", "mlp_norm_linear", "MLP", "MLP_NormAFLinear"]
LeNetName = Literal["lenet", "LeNet"]
AutoEncoderName = Literal["autoencoder", "AE"]
OutputStride = Literal[32, 16, 8, 4, 2, 1]


class CommonArguments(TypedDict, total=False):
    """Those of every network."""

    num_classes: int | None  # None for residual networks only.
    in_channels: int | None
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: Required[nnx.Rngs]


class ImageSizeArguments(CommonArguments, total=False):
    """Those of LeNet and the auto-encoder."""

    image_size: int


class NormArguments(CommonArguments, total=False):
    """Those of every network with norms."""

    norm: AnyNormName
    norm_options: dict[str, Any] | None
    width: int | None


class MLPArguments(NormArguments, ImageSizeArguments, total=False):
    """Those of the MLPs."""

    depth: int | None


class ResNetArguments(NormArguments, total=False):
    """Those of residual networks."""

    whiten: Placement | None
    other_norm: OtherNorm
    batch_norm_options: dict[str, Any] | None
    stem: Stem
    output_stride: OutputStride | None
    replace_stride_with_dilation: tuple[bool, bool, bool]
    zero_init_residual: bool
    last_norm: bool
    apply_last_norm: bool
    dropout: float


class AnyArguments(ResNetArguments, MLPArguments, total=False):
    """Those of any network, for a name that is known only when the program runs."""
