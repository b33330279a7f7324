"""The residual network of a state dict, up to its last stage, from its keys and shapes."""

import collections
import dataclasses
from typing import Any

from gw_jax.convert.entries import COUNTER
from gw_jax.convert.fill import listed
from gw_jax.convert.keys import Keys
from gw_jax.convert.norm_kinds import norm_kind
from gw_jax.errors import CheckpointError
from gw_jax.models.resnet import ARCHITECTURES, PLACEMENTS, Architecture


@dataclasses.dataclass(frozen=True)
class ResidualNetwork:
    """A residual network up to its last stage, as far as keys and shapes determine it.

    Attributes:
        name: this project's name of it, or None.
        architecture: its sizes.
        whiten: placement of the norms that are not BatchNorms; None if there are none.
        kind: their kind.
        norms: their keys.
        options: further arguments of :func:`gw_jax.create_model`.
        evidence: how it was found, human-readable.
    """

    name: str | None
    architecture: Architecture
    whiten: str | None
    kind: str | None
    norms: list[str]
    options: dict[str, Any]
    evidence: str


def identify_residual_network(keys: Keys, *, named: bool = True) -> ResidualNetwork | None:
    """The residual network with such keys, whatever follows its last stage; None for the keys of others.

    Args:
        keys: those of a state dict.
        named: whether it must be one that has a name here.

    Raises:
        CheckpointError: no residual network has these blocks or norms.
    """
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
    name = next((name for name, known in ARCHITECTURES.items() if known == architecture), None)
    what = f"{'bottleneck' if bottleneck else 'basic'} blocks {sizes}, {groups} group(s) of width {width_per_group}"
    if name is None and named:
        raise CheckpointError(
            f"No network has {what} (from the keys 'layer1.0...' to 'layer4.0...' and their shapes)."
            f"{_closest_network(architecture)}"
        )
    options = {}
    for option, value, usual in (
        ("width", width, 64), ("in_channels", in_channels, 3), ("stem", "imagenet" if kernel == 7 else "small", "imagenet"),
    ):  # fmt: skip
        if value != usual:
            options[option] = value
    return ResidualNetwork(name, architecture, *_placement(keys, bottleneck, blocks), options, what)


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
