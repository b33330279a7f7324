"""The network of a state dict, from its keys and shapes. :func:`register_identification` adds further networks."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from gw_jax.convert.fill import listed
from gw_jax.convert.keys import Keys
from gw_jax.convert.norm_kinds import channels_per_group, is_affine, norm_kind
from gw_jax.convert.residual_network import identify_residual_network
from gw_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Identified:
    """A network as far as keys and shapes determine it.

    Attributes:
        name: this project's name of it.
        whiten: placement of the norm; None where all norms are ordinary BatchNorms, or there is no choice.
        kind: the kind of that norm, a key of ``norm_kinds.CANDIDATES``; None where there is no norm to choose.
        affine: whether it has scale and bias.
        channels_per_group: of batch whitening, else None.
        options: further arguments of :func:`gw_jax.create_model`.
        evidence: how it was found, human-readable.
    """

    name: str
    whiten: str | None
    kind: str | None
    affine: bool
    channels_per_group: int | None
    options: dict[str, Any]
    evidence: str


Identification = Callable[[Keys], Identified | None]
_IDENTIFICATIONS: list[Identification] = []


def register_identification(function: Identification) -> Identification:
    """Lets ``function`` recognise its networks; it returns None for the keys of others."""
    _IDENTIFICATIONS.append(function)
    return function


def identify(shapes: Mapping[str, tuple[int, ...]]) -> Identified:
    """The network to which a state dict of these ``shapes`` belongs.

    Raises:
        CheckpointError: it belongs to none that this project has; the message says what does not fit.
    """
    keys = Keys(shapes)
    for function in _IDENTIFICATIONS:
        if found := function(keys):
            return found
    if any(key.startswith("backbone.body.") for key in shapes):
        raise CheckpointError(
            f"These are the entries of a detector: {listed(list(shapes), 2)}. 'python -m gw_jax.detection.convert IN.pth "
            "OUT_DIR' converts it."
        )
    raise CheckpointError(
        f"No network of the reference has keys like {listed(list(shapes), 4) or '(there are none)'}. Residual networks "
        "have 'layer1.0.conv1.weight', the MNIST networks 'net.0.weight' or 'net.1.weight'."
    )


@register_identification
def _resnet(keys: Keys) -> Identified | None:
    network = identify_residual_network(keys)
    if network is None or network.name is None:
        return None
    classes, _ = keys.need("fc.weight", 2)
    has_last_norm = bool(keys.children("last_bn"))
    whiten, kind, norms = network.whiten, network.kind, network.norms
    if kind is None and has_last_norm and norm_kind(keys, "last_bn") != "BN":
        raise CheckpointError(
            "The norm 'last_bn' is not a BatchNorm, but 'bn1' is; the reference has one kind in both places."
        )
    options: dict[str, Any] = {"num_classes": classes, "last_norm": has_last_norm, **network.options}
    where = "all norms are BatchNorms" if kind is None else f"{kind} at {whiten}"
    channels = channels_per_group(keys, [*norms, *(["last_bn"] if has_last_norm else [])], kind)
    evidence = f"{network.evidence}; {where}"
    return Identified(network.name, whiten, kind, is_affine(keys, norms or ["bn1"]), channels, options, evidence)


@register_identification
def _lenet(keys: Keys) -> Identified | None:
    if not any(len(keys.shapes.get(f"net.{number}.weight", ())) == 4 for number in (0, 3)):
        return None
    in_channels = keys.need("net.0.weight", 4)[1]
    edge = math.isqrt(keys.need("net.7.weight", 2)[1] // 16)
    options = {
        "num_classes": keys.need("net.11.weight", 2)[0],
        "in_channels": in_channels,
        "image_size": 2 * (2 * edge + 4),
    }
    return Identified("lenet", None, None, True, None, options, "the keys net.0, net.3, net.7, net.9 and net.11")


@register_identification
def _mlp(keys: Keys) -> Identified | None:
    numbers = keys.numbers("net")
    if not numbers:
        return None
    width, pixels = keys.need("net.1.weight", 2)
    # The stride of the hidden layers: linear, norm, ReLU, or linear, norm, linear, ReLU.
    stride, name = (4, "mlp_norm_linear") if keys.children("net.3") else (3, "mlp")
    depth, present = (numbers[-1] - 1) // stride, set(numbers)
    missing = next(n for n in itertools.count(1, stride) if n not in present)
    if depth < 1 or missing < numbers[-1] or (numbers[-1] - 1) % stride:
        raise CheckpointError(
            f"The linear layers of an MLP with such keys are net.1, net.{1 + stride}, net.{1 + 2 * stride} and so on, at "
            f"least two of them; net.{missing} is missing, and the last one here is net.{numbers[-1]}."
        )
    classes = keys.need(f"net.{numbers[-1]}.weight", 2)[0]
    in_channels = next((c for c in (1, 3) if pixels % c == 0 and math.isqrt(pixels // c) ** 2 * c == pixels), None)
    if in_channels is None:
        raise CheckpointError(f"'net.1.weight' has {pixels} inputs; square images of 1 or 3 channels are supported.")
    norms = [f"net.{2 + stride * index}" for index in range(depth)]
    kinds = [norm_kind(keys, norm) for norm in norms]
    kind = next((kind for kind in kinds if kind != "no entries"), "no entries")
    options = {
        "num_classes": classes,
        "in_channels": in_channels,
        "image_size": math.isqrt(pixels // in_channels),
        "depth": depth,
        "width": width,
    }
    evidence = f"linear layers net.1 to net.{numbers[-1]} of width {width}; {kind} at {norms[0]}"
    channels = channels_per_group(keys, norms, kind)
    return Identified(name, None, kind, is_affine(keys, norms), channels, options, evidence)
