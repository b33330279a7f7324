"""What the keys and shapes of a state dict say about the network that wrote it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gw_jax.convert.layout import BATCH_WHITENING_NAMES
from gw_jax.errors import CheckpointError
from gw_jax.models.resnet import ARCHITECTURES, PLACEMENTS, Architecture

Shapes = Mapping[str, tuple[int, ...]]

# Kinds of norms that keys can tell apart: the names of the reference that each may be.
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
_CHILDREN = {child for child, _ in BATCH_WHITENING_NAMES.values()}


@dataclasses.dataclass(frozen=True)
class Inferred:
    """A network as far as keys and shapes tell.

    Attributes:
        name: this project's name of it.
        whiten: placement of the norm; None where all norms are ordinary BatchNorms, or there is no choice.
        kind: the kind of that norm, a key of :data:`CANDIDATES`; None where there is no norm to choose.
        affine: whether it has scale and bias.
        channels_per_group: of batch whitening, else None.
        options: further arguments of :func:`gw_jax.create_model`.
        evidence: how it was found, for people.
    """

    name: str
    whiten: str | None
    kind: str | None
    affine: bool
    channels_per_group: int | None
    options: dict[str, Any]
    evidence: str


def infer(shapes: Shapes) -> Inferred:
    """The network that a state dict of these ``shapes`` belongs to.

    Raises:
        CheckpointError: it belongs to none that this project has; the message says what does not fit.
    """
    if "layer1.0.conv1.weight" in shapes:
        return _infer_resnet(shapes)
    if len(shapes.get("net.0.weight", ())) == 4 and "net.11.weight" in shapes:
        return _infer_lenet(shapes)
    if len(shapes.get("net.1.weight", ())) == 2:
        return _infer_mlp(shapes)
    raise CheckpointError(
        f"No network of the reference has keys like {', '.join(list(shapes)[:4])}. Residual networks have "
        "'layer1.0.conv1.weight', the MNIST networks 'net.0.weight' or 'net.1.weight'."
    )


def norm_kind(shapes: Shapes, key: str) -> str:
    """The kind of the norm ``key``, such as "bn1"."""
    weight = shapes.get(f"{key}.weight")
    if f"{key}.running_mean" in shapes:
        return "BN" if weight is not None else "BN without scale"
    for child in sorted(_CHILDREN):
        if f"{key}.{child}.0.running_mean" in shapes:
            return child
    if weight is None:
        return "no entries"
    return "vector" if len(weight) == 1 else "group whitening"


def _need(shapes: Shapes, key: str, ndim: int) -> tuple[int, ...]:
    shape = shapes.get(key)
    if shape is None or len(shape) != ndim:
        found = "is missing" if shape is None else f"is of shape {list(shape)}"
        raise CheckpointError(f"The entry {key!r}, which a network with such keys has with {ndim} axes, {found}.")
    return shape


def _infer_resnet(shapes: Shapes) -> Inferred:
    bottleneck = "layer1.0.conv3.weight" in shapes
    sizes = tuple(_count(shapes, f"layer{stage}") for stage in range(1, 5))
    width, in_channels, kernel, _ = _need(shapes, "conv1.weight", 4)
    groups, width_per_group = 1, 64
    if bottleneck:
        inner, inputs = _need(shapes, "layer1.0.conv2.weight", 4)[:2]
        groups = inner // inputs
        width_per_group = round(64 * inner / groups / width)
    found = Architecture(bottleneck, sizes, groups, width_per_group)  # type: ignore[arg-type]
    what = f"{'bottleneck' if bottleneck else 'basic'} blocks {sizes}, {groups} group(s) of width {width_per_group}"
    names = [name for name, architecture in ARCHITECTURES.items() if architecture == found]
    if not names:
        raise CheckpointError(f"No network has {what} (from the keys 'layer1.0...' to 'layer4.0...' and their shapes).")
    classes, _ = _need(shapes, "fc.weight", 2)
    whiten, kind, affine, keys = _placement(shapes, bottleneck, sizes)
    last_norm = any(key.startswith("last_bn.") for key in shapes)
    if kind is None and last_norm and norm_kind(shapes, "last_bn") != "BN":
        raise CheckpointError(
            "The norm 'last_bn' is not a BatchNorm, but 'bn1' is; the reference has one kind in both places."
        )
    options: dict[str, Any] = {"num_classes": classes, "last_norm": last_norm}
    for option, value, usual in (
        ("width", width, 64), ("in_channels", in_channels, 3), ("stem", "imagenet" if kernel == 7 else "small", "imagenet"),
    ):  # fmt: skip
        if value != usual:
            options[option] = value
    where = "all norms are BatchNorms" if kind is None else f"{kind} at {whiten}"
    channels = _channels_per_group(shapes, [*keys, *(["last_bn"] if last_norm else [])], kind)
    return Inferred(names[0], whiten, kind, affine, channels, options, f"{what}; {where}")


def _count(shapes: Shapes, prefix: str) -> int:
    count = 0
    while f"{prefix}.{count}.conv1.weight" in shapes:
        count += 1
    return count


def _placement(shapes: Shapes, bottleneck: bool, sizes: tuple[int, ...]) -> tuple[str | None, str | None, bool, list[str]]:
    """Placement, kind, whether it is affine, and the keys of the norms there."""
    positions = {"stem": ["bn1"], "1": [], "2": [], "3": [], "shortcut": []}
    for stage, size in enumerate(sizes, start=1):
        for index in range(size):
            key = f"layer{stage}.{index}"
            # The second norm of a basic block stands where the third of a bottleneck does.
            for position, name in (
                (("1", "bn1"), ("2", "bn2"), ("3", "bn3")) if bottleneck else (("1", "bn1"), ("3", "bn2"))
            ):
                positions[position].append(f"{key}.{name}")
            if f"{key}.downsample.0.weight" in shapes:
                positions["shortcut"].append(f"{key}.downsample.1")
    chosen: dict[str, str] = {}
    for position, keys in positions.items():
        kinds = {norm_kind(shapes, key) for key in keys}
        if len(kinds) > 1:
            raise CheckpointError(
                f"The norms {keys[0]!r} to {keys[-1]!r} are of several kinds: {', '.join(sorted(kinds))}."
            )
        if kinds and kinds != {"BN"}:
            chosen[position] = kinds.pop()
    if not chosen:
        return None, None, True, []
    if len(set(chosen.values())) > 1:
        listed = ", ".join(f"{kind} at {position}" for position, kind in chosen.items())
        raise CheckpointError(f"The network mixes norms as no network of the reference does: {listed}.")
    places = set(chosen)
    for whiten, standard in PLACEMENTS.items():
        expected = set(standard)
        if not bottleneck:
            expected = {"stem"} & expected | {
                *(["1"] if {"1", "2"} & expected else []),
                *(["3"] if "3" in expected or {"1", "2"} <= expected else []),
                *({"shortcut"} & expected),
            }
        if expected == places and not (whiten == "S1-B1" and not bottleneck):
            keys = [key for position in places for key in positions[position]]
            kind = chosen["stem"]
            affine = f"{keys[0]}.weight" in shapes
            return whiten, kind, affine, keys
    raise CheckpointError(
        f"Norms other than BatchNorm stand at {', '.join(sorted(places))}; no placement has these: "
        f"{', '.join(f'{name} {places}' for name, places in PLACEMENTS.items())}."
    )


def _channels_per_group(shapes: Shapes, keys: list[str], kind: str | None) -> int | None:
    """The reference's ``num_channels``: the size of the first of several groups, or of the largest where all are single."""
    if kind not in _CHILDREN:
        return None
    first = {key: shapes.get(f"{key}.{kind}.0.running_mean", (0,))[0] for key in keys}
    several = {first[key] for key in keys if f"{key}.{kind}.1.running_mean" in shapes}
    return max(several) if several else max(first.values())


def _infer_lenet(shapes: Shapes) -> Inferred:
    in_channels = _need(shapes, "net.0.weight", 4)[1]
    edge = math.isqrt(_need(shapes, "net.7.weight", 2)[1] // 16)
    options = {
        "num_classes": _need(shapes, "net.11.weight", 2)[0],
        "in_channels": in_channels,
        "image_size": 2 * (2 * edge + 4),
    }
    return Inferred("lenet", None, None, True, None, options, "the keys net.0, net.3, net.7, net.9 and net.11")


def _infer_mlp(shapes: Shapes) -> Inferred:
    after = "net.3.weight" in shapes
    stride, name = (4, "mlp_norm_linear") if after else (3, "mlp")
    # Other keys are left over, and named as such later.
    numbers = [key.split(".")[1] for key in shapes if key.startswith("net.")]
    last = max(int(number) for number in numbers if number.isdigit())
    depth = (last - 1) // stride
    width, pixels = _need(shapes, "net.1.weight", 2)
    classes = _need(shapes, f"net.{last}.weight", 2)[0]
    in_channels = next((c for c in (1, 3) if pixels % c == 0 and math.isqrt(pixels // c) ** 2 * c == pixels), None)
    if in_channels is None:
        raise CheckpointError(f"'net.1.weight' takes {pixels} values; square images of 1 or 3 channels are supported.")
    keys = [f"net.{2 + stride * index}" for index in range(depth)]
    kind = norm_kind(shapes, keys[0])
    options = {
        "num_classes": classes,
        "in_channels": in_channels,
        "image_size": math.isqrt(pixels // in_channels),
        "depth": depth,
        "width": width,
    }
    evidence = f"linear layers net.1 to net.{last} of width {width}; {kind} at {keys[0]}"
    return Inferred(
        name, None, kind, f"{keys[0]}.weight" in shapes, _channels_per_group(shapes, keys, kind), options, evidence
    )
