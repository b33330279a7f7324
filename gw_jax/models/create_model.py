"""Networks by name."""

import difflib
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.models.resnet import ARCHITECTURES, PLACEMENTS, ResNet, Stem


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    norm: str = "gw",
    norm_options: dict[str, Any] | None = None,
    whiten: str = "S1-B2",
    batch_norm_options: dict[str, Any] | None = None,
    stem: Stem = "imagenet",
    width: int = 64,
    in_channels: int = 3,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> ResNet:
    """Makes the network called ``name``: ``model(images_nhwc) -> logits``; ``model.train()`` and ``model.eval()`` switch.

    Args:
        name: resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, resnext101_32x8d, wide_resnet50_2
            or wide_resnet101_2.
        num_classes: length of the logits.
        norm: the norm that takes the places of ``whiten``; a name that :func:`gw_jax.make_norm` knows.
        norm_options: its keyword arguments, such as ``{"num_groups": 64}``.
        whiten: where ``norm`` replaces BatchNorm: "S1" is the stem, "B1", "B2", "B3" the norms of each block. One of
            S1-B2 (the paper's choice), S1, S1-B1, S1-B3, S1-B12, all (shortcuts too), none.
        batch_norm_options: keyword arguments of the :class:`gw_jax.BatchNorm` everywhere else.
        stem: "imagenet" (7x7 convolution and max-pool, both of stride 2) or, for images of some 32 pixels, "small" (3x3
            convolution of stride 1).
        width: channels of the stem; 64 in the published networks. Everything else scales with it.
        in_channels: channels of the images.
        dtype: type of the activations, such as ``jnp.bfloat16``; None for that of images and parameters together.
            The logits are of ``param_dtype``.
        param_dtype: type of the parameters.
        rngs: the generators that initialise the parameters.

    Raises:
        ValueError: an unknown name, norm, placement or stem, or options that do not fit; the message lists the known ones.

    Source: He et al. (CVPR 2016), Xie et al. (CVPR 2017), Zagoruyko and Komodakis (BMVC 2016); placements and
    initialisation: Group Whitening (CVPR 2021), section 5.1, and the reference's ``ImageNet/models``.
    """
    for what, value, known in (
        ("network", name, ARCHITECTURES),
        ("placement (whiten)", whiten, PLACEMENTS),
        ("stem", stem, ("imagenet", "small")),
    ):
        if value not in known:
            close = difflib.get_close_matches(str(value), list(known), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"No {what} is called {value!r}; choose one of {', '.join(known)}.{hint}")
    for what, number in (("num_classes", num_classes), ("width", width), ("in_channels", in_channels)):
        if number < 1:
            raise ValueError(f"{what}={number}; it must be 1 or more.")
    return ResNet(
        ARCHITECTURES[name],
        num_classes=num_classes,
        norm=norm,
        norm_options=norm_options or {},
        batch_norm_options=batch_norm_options or {},
        whiten=whiten,
        stem=stem,
        width=width,
        in_channels=in_channels,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
