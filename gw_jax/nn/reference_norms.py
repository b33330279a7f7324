"""The reference's names of norms (``--norm``) and of their options (``--norm-cfg``), translated."""

from typing import Any, Literal

from gw_jax.errors import unknown_name

NormName = Literal[
    "gw", "gw_zca", "bn", "frozen_bn", "gn", "ln", "in", "iternorm", "iternorm_sigma", "dbn", "dbn_sigma", "none"
]  # fmt: skip
ReferenceNormName = Literal["IGWItN", "IGWSVD", "BN", "GN", "LN", "IN", "ItN", "ItNSigma", "DBN", "DBNSigma", "No", "None"]

# The reference's name and ours.
REFERENCE_NORMS: dict[str, NormName] = {
    "IGWItN": "gw",
    "IGWSVD": "gw_zca",
    "BN": "bn",
    "GN": "gn",
    "LN": "ln",
    "IN": "in",
    "ItN": "iternorm",
    "ItNSigma": "iternorm_sigma",
    "DBN": "dbn",
    "DBNSigma": "dbn_sigma",
    "No": "none",
    "None": "none",
}

GROUP_WHITENING = ("IGWItN", "IGWSVD")
BATCH_WHITENING = ("ItN", "ItNSigma", "DBN", "DBNSigma")

# Keys that some layer of the reference accepts. Every layer ignores those of the others, so that one --norm-cfg serves
# networks with several norms.
NORM_CFG_KEYS = ("T", "num_groups", "num_channels", "eps", "momentum", "affine", "dim", "mode", "track_running_stats")


def translate_norm_cfg(norm: str, norm_cfg: dict[str, Any] | None) -> tuple[NormName, dict[str, Any]]:
    """Our name and options for the reference's ``norm`` and ``norm_cfg``.

    ======================  =====================================================================================
    ``T``                   ``num_iterations`` (IGWItN, ItN, ItNSigma)
    ``num_groups``          ``num_groups`` (IGWItN, IGWSVD, GN)
    ``num_channels``        ``channels_per_group`` (ItN and ItNSigma need it; DBN and DBNSigma: 16); above 0 it overrides
                            ``num_groups`` (IGWItN, IGWSVD)
    ``eps``                 ``epsilon``; IGWItN stores it without using it, so it is dropped there
    ``momentum``            1 - ``momentum``: the reference's is the share of the new statistics
    ``affine``              ``use_scale`` and ``use_bias``
    ``dim``, ``mode``       dropped: the first follows from the input's shape, the second is unused
    ======================  =====================================================================================

    A key of the reference that ``norm`` itself ignores there is dropped here.

    Raises:
        ValueError: an unknown ``norm``, a key that no layer of the reference has, a value that does not fit.
    """
    if norm not in REFERENCE_NORMS:
        raise ValueError(unknown_name("The reference's norm", norm, REFERENCE_NORMS))
    cfg = dict(norm_cfg or {})
    if unknown := [key for key in cfg if key not in NORM_CFG_KEYS]:
        raise ValueError(
            f"norm_cfg has the keys {unknown}, which no norm of the reference has; choose from {NORM_CFG_KEYS}."
        )
    name = REFERENCE_NORMS[norm]
    options: dict[str, Any] = {}
    if name == "none":
        return name, options
    if cfg.get("track_running_stats") not in (None, norm == "BN"):
        raise ValueError(
            f"norm_cfg track_running_stats={cfg['track_running_stats']} for {norm}: BN always keeps running statistics, "
            "and the other norms do not have this key. Leave it out."
        )
    if "affine" in cfg:
        options["use_scale"] = options["use_bias"] = _require(cfg, "affine", bool)
    if "T" in cfg and norm in ("IGWItN", "ItN", "ItNSigma"):
        options["num_iterations"] = _require(cfg, "T", int)
    if "eps" in cfg and norm != "IGWItN":
        options["epsilon"] = _require(cfg, "eps", (int, float))
    if "momentum" in cfg and norm in ("BN", *BATCH_WHITENING):
        options["momentum"] = 1 - _require(cfg, "momentum", (int, float))
    if norm in ("GN", *GROUP_WHITENING) and "num_groups" in cfg:
        options["num_groups"] = _require(cfg, "num_groups", int)
    num_channels = cfg.get("num_channels")
    if norm in GROUP_WHITENING and num_channels is not None and _require(cfg, "num_channels", int) > 0:
        options.pop("num_groups", None)
        options["channels_per_group"] = num_channels
    if norm in BATCH_WHITENING:
        if num_channels is not None:
            options["channels_per_group"] = _require(cfg, "num_channels", int)
        elif norm in ("ItN", "ItNSigma"):
            raise ValueError(
                f"The reference's {norm} needs num_channels in norm_cfg, the channels that it whitens together."
            )
    return name, options


def _require(cfg: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    value = cfg[key]
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"norm_cfg {key}={value!r} is a {type(value).__name__}; it must be of type {names}.")
    return value
