"""The kinds of norms that keys and shapes of a state dict distinguish."""

from collections.abc import Iterable

from gw_jax.convert.entries import BATCH_WHITENING_NAMES, COUNTER
from gw_jax.convert.keys import Keys

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
