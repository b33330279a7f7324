"""The network of a state dict, from its keys and shapes. :func:`register_identification` adds further networks."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gw_jax.convert.entries import BATCH_WHITENING_NAMES, COUNTER
from gw_jax.convert.fill import listed
from gw_jax.convert.keys import Keys
from gw_jax.errors import CheckpointError
from gw_jax.models.resnet import ARCHITECTURES, PLACEMENTS, Architecture

# Kinds of norms that keys distinguish: the names of the reference that each may be.
CANDIDATES: dict[str, tuple[str, ...]] = {
    "BN": ("BN",),
    "BN without scale": ("BN",),
    "group whitening": ("IGWItN", "IGWSVD"),
    "vector": ("GN", "LN", "IN"),
    "iterNorm_Groups": ("ItN", "ItNSigma"),
    "DBN_Groups": ("DBN",),
    "DBNSigma_Groups": ("DBNSigma",),
    "no entries": ("IGWItN", "IGWSVD", "GN", "LN", "IN", "No"),
}
_CHILDREN = sorted({child for child, _ in BATCH_WHITENING_NAMES.values()})
_BATCH_NORM_BUFFERS = {"running_mean", "running_var", COUNTER}


@dataclasses.dataclass(frozen=True)
class Identified:
    """A network as far as keys and shapes determine it.

    Attributes:
        name: this project's name of it.
        whiten: placement of the norm; None where all norms are ordinary BatchNorms, or there is no choice.
        kind: the kind of that norm, a key of :data:`CANDIDATES`; None where there is no norm to choose.
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
    raise CheckpointError(
        f"No network of the reference has keys like {listed(list(shapes), 4) or '(there are none)'}. Residual networks "
        "have 'layer1.0.conv1.weight', the MNIST networks 'net.0.weight' or 'net.1.weight'."
    )


def norm_kind(keys: Keys, key: str) -> str:
    """The kind of the norm ``key``, such as "bn1"; a single entry that is missing does not change it."""
    names = keys.children(key)
    shape = keys.shapes.get(f"{key}.weight", keys.shapes.get(f"{key}.bias"))
    if names & _BATCH_NORM_BUFFERS:
        return "BN without scale" if shape is None else "BN"
    for child in _CHILDREN:
        if child in names:
            return child
    if shape is None:
        return "no entries"
    return "vector" if len(shape) == 1 else "group whitening"


def is_affine(keys: Keys, norms: Iterable[str]) -> bool:
    """Whether the ``norms`` have scale and bias."""
    return any(keys.children(norm) & {"weight", "bias"} for norm in norms)


def channels_per_group(keys: Keys, norms: Iterable[str], kind: str | None) -> int | None:
    """The reference's ``num_channels``: the size of the first of several groups, or of the largest where all are single."""
    if kind not in _CHILDREN:
        return None
    first = {norm: keys.need(f"{norm}.{kind}.0.running_mean", 2)[0] for norm in norms}
    several = {first[norm] for norm in first if len(keys.numbers(f"{norm}.{kind}")) > 1}
    return max(several or first.values())


@register_identification
def _resnet(keys: Keys) -> Identified | None:
    if not any(keys.children(f"layer{stage}") for stage in range(1, 5)):
        return None
    sizes = tuple(_count_blocks(keys, f"layer{stage}") for stage in range(1, 5))
    blocks = [f"layer{stage}.{index}" for stage, size in enumerate(sizes, 1) for index in range(size)]
    bottleneck = any("conv3" in keys.children(block) for block in blocks)
    width, in_channels, kernel, _ = keys.need("conv1.weight", 4)
    groups, width_per_group = 1, 64
    if bottleneck:
        inner, inputs = keys.need("layer1.0.conv2.weight", 4)[:2]
        groups = max(1, inner // inputs)
        width_per_group = round(64 * inner / groups / width)
    architecture = Architecture(bottleneck, sizes, groups, width_per_group)  # type: ignore[arg-type]
    what = f"{'bottleneck' if bottleneck else 'basic'} blocks {sizes}, {groups} group(s) of width {width_per_group}"
    name = next((name for name, known in ARCHITECTURES.items() if known == architecture), None)
    if name is None:
        raise CheckpointError(
            f"No network has {what} (from the keys 'layer1.0...' to 'layer4.0...' and their shapes)."
            f"{_closest_network(architecture)}"
        )
    classes, _ = keys.need("fc.weight", 2)
    has_last_norm = bool(keys.children("last_bn"))
    whiten, kind, norms = _placement(keys, bottleneck, blocks)
    if kind is None and has_last_norm and norm_kind(keys, "last_bn") != "BN":
        raise CheckpointError(
            "The norm 'last_bn' is not a BatchNorm, but 'bn1' is; the reference has one kind in both places."
        )
    options: dict[str, Any] = {"num_classes": classes, "last_norm": has_last_norm}
    for option, value, usual in (
        ("width", width, 64), ("in_channels", in_channels, 3), ("stem", "imagenet" if kernel == 7 else "small", "imagenet"),
    ):  # fmt: skip
        if value != usual:
            options[option] = value
    where = "all norms are BatchNorms" if kind is None else f"{kind} at {whiten}"
    channels = channels_per_group(keys, [*norms, *(["last_bn"] if has_last_norm else [])], kind)
    return Identified(name, whiten, kind, is_affine(keys, norms or ["bn1"]), channels, options, f"{what}; {where}")


def _count_blocks(keys: Keys, stage: str) -> int:
    numbers = keys.numbers(stage)
    gap = next((index for index, number in enumerate(numbers) if index != number), None)
    if gap is not None:
        raise CheckpointError(
            f"The block '{stage}.{gap}' is missing, although there are entries of '{stage}.{numbers[-1]}'."
        )
    return len(numbers)


def _closest_network(found: Architecture) -> str:
    """A hint at the network that differs only in the number of blocks, and at what is missing or left over."""
    similar = {
        name: known
        for name, known in ARCHITECTURES.items()
        if dataclasses.replace(known, stage_sizes=found.stage_sizes) == found
    }
    if not similar:
        return ""

    def distance(name: str) -> int:
        return sum(abs(a - b) for a, b in zip(similar[name].stage_sizes, found.stage_sizes, strict=True))

    name = min(similar, key=distance)
    differences = [
        f"'layer{stage}.{min(size, known)}' is {'missing' if size < known else 'left over'}"
        for stage, (size, known) in enumerate(zip(found.stage_sizes, similar[name].stage_sizes, strict=True), 1)
        if size != known
    ]
    return f" The closest is {name}, of which {', '.join(differences)}."


def _placement(keys: Keys, bottleneck: bool, blocks: list[str]) -> tuple[str | None, str | None, list[str]]:
    """Placement and kind of the norms that are not BatchNorms, and their keys."""
    positions: dict[str, list[str]] = {"stem": ["bn1"], "1": [], "2": [], "3": [], "shortcut": []}
    for block in blocks:
        for position, norm in zip("123" if bottleneck else "13", ("bn1", "bn2", "bn3"), strict=False):
            positions[position].append(f"{block}.{norm}")
        if keys.children(f"{block}.downsample"):
            positions["shortcut"].append(f"{block}.downsample.1")
    chosen: dict[str, str] = {}
    for position, norms in positions.items():
        if norms and (kind := _one_kind(keys, norms)) != "BN":
            chosen[position] = kind
    if not chosen:
        return None, None, []
    if len(set(chosen.values())) > 1:
        found = ", ".join(f"{kind} at {position}" for position, kind in chosen.items())
        raise CheckpointError(f"The network mixes norms as no network of the reference does: {found}.")
    for whiten, standard in PLACEMENTS.items():
        if whiten == "S1-B1" and not bottleneck:
            continue  # The same norms as S1-B2.
        if _of_block(standard, bottleneck) == set(chosen):
            return whiten, chosen["stem"], [norm for position in chosen for norm in positions[position]]
    raise CheckpointError(
        f"Norms other than BatchNorm are at {', '.join(sorted(chosen))}; no placement has these: "
        f"{', '.join(f'{name} {places}' for name, places in PLACEMENTS.items())}."
    )


def _of_block(placement: tuple[str, ...], bottleneck: bool) -> set[str]:
    """The positions of ``placement``; a basic block has a first norm for B1 and B2, and a last one for B3 and B12."""
    places = set(placement)
    if bottleneck:
        return places
    first = {"1"} if {"1", "2"} & places else set()
    last = {"3"} if "3" in places or {"1", "2"} <= places else set()
    return ({"stem", "shortcut"} & places) | first | last


def _one_kind(keys: Keys, norms: list[str]) -> str:
    kinds = {norm: norm_kind(keys, norm) for norm in norms}
    usual = collections.Counter(kinds.values()).most_common(1)[0][0]
    odd = next((norm for norm in norms if kinds[norm] != usual), None)
    if odd is None:
        return usual
    like = next(norm for norm in norms if kinds[norm] == usual)
    missing = sorted(keys.children(like) - keys.children(odd) - {COUNTER})
    raise CheckpointError(
        f"The norms {norms[0]!r} to {norms[-1]!r} are of several kinds: {usual} at {like!r}, {kinds[odd]} at {odd!r}"
        f"{', where ' + listed([f'{odd}.{name}' for name in missing]) + ' is missing' if missing else ''}."
    )


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
