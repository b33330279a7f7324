"""The options of a detector: their checks, and what they mean for its backbone."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import jax
from flax import nnx

from gw_jax.detection.heads import BoxHeadName, ConvReLU
from gw_jax.detection.layers import HeadNorm, xavier_uniform
from gw_jax.errors import shown, unknown_name
from gw_jax.models import Architecture, ResNet
from gw_jax.models.resnet import ARCHITECTURES, OtherNorm, Placement, ResNetName
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.ops.checks import require_epsilon, require_integer

DetectorNorm = Literal["gw", "gn", "bn", "frozen_bn"]

# Where the backbone has which norm: at the places of a placement, and everywhere else.
BACKBONE_NORMS: dict[DetectorNorm, tuple[Placement, OtherNorm]] = {
    "gw": ("S1-B2", "frozen_bn"),
    "gn": ("all", "frozen_bn"),
    "bn": ("all", "frozen_bn"),
    "frozen_bn": ("all", "frozen_bn"),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": get_args(DetectorNorm),
    "fpn_norm": get_args(HeadNorm),
    "box_head": get_args(BoxHeadName),
    "box_head_norm": get_args(HeadNorm),
    "mask_head_norm": get_args(HeadNorm),
    "conv_relu": get_args(ConvReLU),
}
NUM_STAGES = 4
_LEAST = {"num_classes": 2, "width": 1, "fpn_features": 1, "head_features": 1}


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the arguments of :func:`gw_jax.detection.create_detector`, types and generators apart.

    Raises:
        ValueError: an unknown name, a number that is none or out of range, or options that do not fit each other.
    """
    for name, known in _CHOICES.items():
        if options[name] not in known:
            raise ValueError(unknown_name(name, options[name], known))
    for name, least in _LEAST.items():
        require_integer(name, options[name], least)
    if require_integer("frozen_stages", options["frozen_stages"], 0) > NUM_STAGES:
        raise ValueError(f"frozen_stages={options['frozen_stages']}; a backbone has {NUM_STAGES} stages.")
    if options["norm"] == "bn" and options["frozen_stages"]:
        raise ValueError(
            f"norm='bn' with frozen_stages={options['frozen_stages']}: batch norms of frozen stages would still follow the "
            "statistics of the batches. Give frozen_stages=0, or norm='frozen_bn'."
        )
    require_epsilon(options["frozen_bn_epsilon"], of=" (frozen_bn_epsilon)")
    if options["stem"] != "imagenet":
        raise ValueError(
            f"stem={shown(options['stem'])}; only the stem 'imagenet' has the strides of the pyramid, 4 to 32 pixels."
        )
    if options["box_head"] == "2fc" and options["box_head_norm"] != "none":
        raise ValueError(
            f"box_head_norm={options['box_head_norm']!r} with box_head='2fc', which has no convolutions to normalise; "
            "choose box_head='4conv1fc' or box_head_norm='none'."
        )
    if not options["mask_head"] and options["mask_head_norm"] != "none":
        raise ValueError(
            f"mask_head_norm={options['mask_head_norm']!r} without a mask head; give mask_head=True or "
            "mask_head_norm='none'."
        )


def architecture_of(backbone: object) -> tuple[ResNetName | Architecture, Architecture]:
    """The name or :class:`Architecture` for :func:`gw_jax.create_model`, and the architecture.

    Args:
        backbone: a name, an architecture, or the fields of one.

    Raises:
        ValueError: it is no residual network.
    """
    if isinstance(backbone, Architecture):
        return backbone, backbone
    if isinstance(backbone, Mapping):
        fields = {field.name for field in dataclasses.fields(Architecture)}
        if unknown := sorted(set(backbone) - fields):
            raise ValueError(unknown_name("backbone field", unknown[0], sorted(fields)))
        try:
            made = Architecture(**{**backbone, "stage_sizes": tuple(backbone["stage_sizes"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"backbone={shown(dict(backbone))} is no Architecture: {error}.") from None
        return made, made
    # A name of the reference that also places the norm would contradict the detector's norm, so only plain ones count.
    if not isinstance(backbone, str) or backbone not in ARCHITECTURES:
        raise ValueError(unknown_name("backbone", backbone, ARCHITECTURES))
    return cast(ResNetName, backbone), ARCHITECTURES[backbone]


def initialise_backbone(network: ResNet, rngs: nnx.Rngs) -> None:
    """Gives all convolutions the initial values that the reference's detectors have: uniform in +-sqrt(3 / fan-in)."""
    if isinstance(rngs, AbstractRngs):
        return
    for _, module in nnx.iter_graph(network):
        if isinstance(module, nnx.Conv):
            kernel: jax.Array = module.kernel[...]
            fan_in = math.prod(kernel.shape[:-1])
            module.kernel[...] = xavier_uniform(fan_in)(rngs.params(), kernel.shape, kernel.dtype)
