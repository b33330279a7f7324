"""The options of a network: from its keys, from the caller, and from the file's own cfg, in this order."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gw_jax.convert.fill import listed
from gw_jax.convert.identify import Identified
from gw_jax.convert.norm_kinds import CANDIDATES
from gw_jax.errors import CheckpointError, ConfigError, shown, unknown_name
from gw_jax.models.create_model import MNIST_NETWORKS
from gw_jax.models.reference_names import REFERENCE_MNIST, REFERENCE_RESNETS
from gw_jax.models.resnet import ARCHITECTURES
from gw_jax.nn.reference_norms import REFERENCE_NORMS, translate_norm_cfg

# The options of the published models and of the reference's scripts, where a file does not determine them.
PUBLISHED_NORM_CFG: dict[str, dict[str, Any]] = {
    "IGWItN": {"T": 5, "num_groups": 64},
    "IGWSVD": {"num_groups": 64},
    "GN": {"num_groups": 32},
    "ItN": {"T": 5},
    "ItNSigma": {"T": 5},
}
DEFAULT_NORM = "IGWItN"
ARCH_CFG_KEYS = ("num_classes", "last", "dropout", "zero_init_residual", "replace_stride_with_dilation", "pretrained")


@dataclasses.dataclass(frozen=True)
class ModelArguments:
    """Arguments of :func:`gw_jax.create_model`.

    Attributes:
        arguments: the arguments.
        guesses: those that neither the file nor the caller determines.
        notices: further remarks for the report.
    """

    arguments: dict[str, Any]
    guesses: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def check_arguments(arch: str | None, norm: str | None, arch_cfg: Mapping[str, Any] | None) -> None:
    """Raises ConfigError unless the arguments of :func:`load_torch` are names that the reference or this project has."""
    known = (*REFERENCE_RESNETS, *REFERENCE_MNIST, *ARCHITECTURES, *MNIST_NETWORKS)
    for what, value, names in (("arch", arch, known), ("norm", norm, tuple(REFERENCE_NORMS))):
        if value is not None and value not in names:
            raise ConfigError(unknown_name(what, value, names))
    for key in arch_cfg or {}:
        if key not in ARCH_CFG_KEYS:
            raise ConfigError(unknown_name("arch_cfg key", key, ARCH_CFG_KEYS))


def architecture_name(arch: str | None, found: Identified) -> tuple[str, str]:
    """Name and placement of the network; ``arch`` must agree with what the keys say.

    Raises:
        CheckpointError: it does not.
    """
    if arch is None:
        return found.name, found.whiten or ("all" if found.name.startswith("wide") else "S1")
    name, whiten = REFERENCE_RESNETS.get(arch, (REFERENCE_MNIST.get(arch, arch), found.whiten or "S1"))
    if name != found.name:
        raise CheckpointError(
            f"arch={arch!r} was requested, which is a {name}, but the file holds a {found.name}: {found.evidence}. "
            "Leave arch out to read what is there."
        )
    if found.whiten is not None and whiten != found.whiten:
        basic = name in ARCHITECTURES and not ARCHITECTURES[name].bottleneck
        if not (basic and {whiten, found.whiten} == {"S1-B1", "S1-B2"}):
            raise CheckpointError(
                f"arch={arch!r} was requested, which has its norm at {whiten}, but the file has it at {found.whiten}: "
                f"{found.evidence}. The reference calls that {reference_name(name, found.whiten)!r}."
            )
    return name, whiten


def reference_name(name: str, whiten: str) -> str | None:
    """The reference's name of the network ``name`` with its norm at ``whiten``, if it has one."""
    for reference, meaning in REFERENCE_MNIST.items():
        if meaning == name:
            return reference
    matches = [reference for reference, network in REFERENCE_RESNETS.items() if network == (name, whiten)]
    return matches[0] if matches else None


def norm_options(
    norm: str | None, norm_cfg: Mapping[str, Any] | None, found: Identified, cfg: Mapping[str, Any]
) -> ModelArguments:
    """``norm`` and ``norm_options`` of :func:`gw_jax.create_model`; none for a network without norms, whatever was given.

    Args:
        norm: the reference's name that the caller insists on, or None.
        norm_cfg: the options that the caller gives, or None.
        found: the network, as its keys determine it.
        cfg: the options of the reference's scripts in a training dict, or nothing.

    Raises:
        CheckpointError: ``norm`` is of another kind than the file's, or is needed and not given.
        ConfigError: an option is not known, or of a wrong type.
    """
    if found.name == "lenet":
        return ModelArguments({})
    name, guesses, notices = _norm_name(norm, found, cfg.get("norm"))
    options: dict[str, Any]
    published: dict[str, Any] = {}
    if norm_cfg is None and cfg.get("norm") == name and isinstance(cfg.get("norm_cfg"), dict):
        options = dict(cfg["norm_cfg"])
    else:
        options = dict(norm_cfg or {})
        # num_channels replaces num_groups.
        fixed = {*options, *(["num_groups"] if options.get("num_channels") else [])}
        if found.kind is not None:
            published = {key: value for key, value in PUBLISHED_NORM_CFG.get(name, {}).items() if key not in fixed}
    if published:
        text = ", ".join(f"{key}={value}" for key, value in published.items())
        guesses += (f"norm_cfg {text} (as in the published models; the file does not determine it)",)
        options |= published
    if found.channels_per_group is not None:
        options.setdefault("num_channels", found.channels_per_group)
    # By default the reference's IN has no scale and bias, nor have the norms of its MLP with linear layers after them.
    if not found.affine or name == "IN" or found.name == "mlp_norm_linear":
        options.setdefault("affine", found.affine)
    try:
        name, translated = translate_norm_cfg(name, options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return ModelArguments({"norm": name, "norm_options": translated}, guesses, notices)


def _norm_name(norm: str | None, found: Identified, stored: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The reference's name of the norm, guesses and notices."""
    candidates = CANDIDATES[found.kind or "BN"]
    guesses: tuple[str, ...] = ()
    if norm is not None:
        if norm not in candidates:
            raise CheckpointError(
                f"norm={norm!r} was requested, but the norms of the file are of another kind ({found.kind or 'BN'}), which "
                f"fits {' or '.join(candidates)}. Pass one of these, or none."
            )
        name = norm
    elif stored in candidates:
        name = stored
    elif found.kind == "iterNorm_Groups":
        raise CheckpointError(
            "The file's norms are ItN or ItNSigma, which have the same keys with different meanings: a running whitening "
            "matrix or a running covariance. Say which: norm='ItN' or norm='ItNSigma' (--norm ItN, --norm ItNSigma)."
        )
    else:
        name = candidates[0]
        if len(candidates) > 1:
            default = "the default; " if name == DEFAULT_NORM else ""
            guesses = (f"norm={name} ({default}the keys fit {' and '.join(candidates[1:])}, too)",)
    if stored is not None and stored != name:
        return name, guesses, (f"the training dict's cfg says norm={shown(stored)}; {name} was used",)
    return name, guesses, ()


def head_options(
    name: str, arch_cfg: Mapping[str, Any] | None, found: Identified, apply_last_norm: bool | None, cfg: Mapping[str, Any]
) -> ModelArguments:
    """The arguments of a residual network that no key or shape determines.

    Args:
        name: the network.
        arch_cfg: the reference's options of it that the caller gives; None for those of ``cfg``.
        found: the network, as its keys determine it.
        apply_last_norm: whether ``last_bn`` is part of the computation; None for what the reference does.
        cfg: the options of the reference's scripts in a training dict, or nothing.

    Raises:
        CheckpointError: an option contradicts the keys.
        ConfigError: an option is of a wrong type.
    """
    if name not in ARCHITECTURES:
        return ModelArguments({})
    notices: list[str] = []
    stored = arch_cfg is None
    options = (cfg.get("arch_cfg") or {}) if arch_cfg is None else arch_cfg
    where = "the file's cfg: arch_cfg" if stored else "arch_cfg"
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where} is {shown(options)}; key=value pairs are needed. Pass arch_cfg (--arch_cfg) yourself.")
    if unused := [key for key in options if key not in ARCH_CFG_KEYS]:
        notices.append(f"{where} has {listed([str(key) for key in unused])}, which no network here has")
    for key, value in (("num_classes", found.options["num_classes"]), ("last", found.options["last_norm"])):
        if key in options and options[key] != value:
            raise CheckpointError(
                f"{where} {key}={shown(options[key])} was requested, but the file has {value}. Leave it out."
            )
    arguments: dict[str, Any] = {}
    resnext = not name.startswith("resnet")
    if found.options["last_norm"]:
        arguments["apply_last_norm"] = (not resnext) if apply_last_norm is None else apply_last_norm
        if not arguments["apply_last_norm"]:
            notices.append(
                "last_bn is kept but not applied, as in the reference's ResNeXt, where it was never used; "
                "apply_last_norm=True applies it"
            )
    dropout = options.get("dropout") or 0
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"{where} dropout={shown(dropout)}; a number from 0 to less than 1 is needed.")
    if dropout and resnext:
        notices.append(f"dropout={dropout} is left out: the reference's ResNeXt never applied it")
    elif dropout:
        arguments["dropout"] = float(dropout)
    if dilation := options.get("replace_stride_with_dilation"):
        if not isinstance(dilation, (list, tuple)) or [type(flag) for flag in dilation] != [bool] * 3:
            raise ConfigError(
                f"{where} replace_stride_with_dilation={shown(dilation)}; three booleans are needed, for the stages 2 to 4."
            )
        arguments["replace_stride_with_dilation"] = list(dilation)
    return ModelArguments(arguments, notices=tuple(notices))
