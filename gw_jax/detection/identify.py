"""The detector of a state dict, from its keys and shapes: the arguments of ``create_detector``."""

from collections.abc import Mapping
from typing import Any

from gw_jax.convert.fill import listed
from gw_jax.convert.keys import Keys
from gw_jax.convert.norm_kinds import norm_kind
from gw_jax.convert.residual_network import ResidualNetwork, identify_residual_network
from gw_jax.detection.heads import NUM_CONVS
from gw_jax.detection.layout import BODY, BOX_FEATURES, FPN, MASK_FEATURES
from gw_jax.errors import CheckpointError

# Placement and kind of the backbone's norms: the argument ``norm``.
_BACKBONE_NORMS = {(None, None): "frozen_bn", ("S1-B2", "group whitening"): "gw", ("all", "vector"): "gn"}
_NORMS = {"group whitening": "gw", "vector": "gn"}
# The deepest named backbone has 50 blocks; making a network of as many as a file can name would take hours.
_MAX_BLOCKS = 200


def identify_detector(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The arguments of :func:`gw_jax.detection.create_detector` to which a state dict of these ``shapes`` belongs.

    Raises:
        CheckpointError: it belongs to none; the message says what does not fit.
    """
    body = {name.removeprefix(BODY).removeprefix("stem."): shape for name, shape in shapes.items() if name.startswith(BODY)}
    if not body:
        raise _no_detector(shapes)
    network = identify_residual_network(Keys(body), named=False)
    if network is None:
        raise CheckpointError(f"The backbone has no blocks: there is no '{BODY}layer1.0.conv1.weight'.")
    if sum(network.architecture.stage_sizes) > _MAX_BLOCKS:
        raise CheckpointError(f"The backbone has {network.evidence}; up to {_MAX_BLOCKS} blocks are supported.")
    keys = Keys(shapes)
    box = BOX_FEATURES.removesuffix(".")
    convs = keys.numbers(f"{box}.xconvs")
    fpn, fpn_norm = _conv_norm(keys, f"{FPN}fpn_inner1")
    arguments: dict[str, Any] = {
        "backbone": network.name or network.architecture,
        "num_classes": keys.need("roi_heads.box.predictor.cls_score.weight", 2)[0],
        "norm": _backbone_norm(network),
        "fpn_norm": fpn_norm,
        "box_head": "4conv1fc" if convs else "2fc",
        "box_head_norm": _norm(keys, f"{box}.xconvs.1") if len(convs) > NUM_CONVS else "none",
    }
    if keys.children("roi_heads.mask"):
        arguments |= {"mask_head": True, "mask_head_norm": _conv_norm(keys, f"{MASK_FEATURES}mask_fcn1")[1]}
    for name, value, usual in (
        ("fpn_features", fpn, 256),
        ("head_features", keys.need(f"{box}.fc6.weight", 2)[0], 1024),
    ):
        if value != usual:
            arguments[name] = value
    if network.options.get("in_channels", 3) != 3:
        raise CheckpointError(f"The backbone has images of {network.options['in_channels']} channels, and 3 are supported.")
    return arguments | {name: network.options[name] for name in ("width", "stem") if name in network.options}


def _backbone_norm(network: ResidualNetwork) -> str:
    norm = _BACKBONE_NORMS.get((network.whiten, network.kind))
    if norm is None:
        raise CheckpointError(
            f"The backbone has {network.kind} at {network.whiten}. Detectors have frozen BatchNorm or group normalisation "
            "everywhere, or group whitening at S1-B2 and frozen BatchNorm elsewhere."
        )
    return norm


def _conv_norm(keys: Keys, key: str) -> tuple[int, str]:
    """Outputs and norm of a convolution that may have a norm."""
    if keys.children(key) & {"0", "1"}:
        return keys.need(f"{key}.0.weight", 4)[0], _norm(keys, f"{key}.1")
    return keys.need(f"{key}.weight", 4)[0], "none"


def _norm(keys: Keys, key: str) -> str:
    kind = norm_kind(keys, key)
    if kind not in _NORMS:
        raise CheckpointError(
            f"The norm {key!r} is of the kind {kind!r}; there group whitening and group normalisation are."
        )
    return _NORMS[kind]


def _no_detector(shapes: Mapping[str, Any]) -> CheckpointError:
    names = listed(list(shapes), 4) or "(there are none)"
    if any(name.startswith(("layer1.", "net.")) for name in shapes):
        return CheckpointError(
            f"These are the entries of a classifier: {names}. 'python -m gw_jax.convert IN.pth OUT_DIR' converts it; from "
            "that directory the training of a detector can start."
        )
    return CheckpointError(f"No detector of the reference has entries like {names}; it has '{BODY}stem.conv1.weight'.")
