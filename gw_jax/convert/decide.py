"""Which network a file is taken for: what its keys tell, what the caller says, what its own cfg says, in this order."""

from typing import Any

from gw_jax.convert.infer import CANDIDATES, Inferred
from gw_jax.errors import CheckpointError, ConfigError, unknown_name
from gw_jax.models.create_model import MNIST_NETWORKS
from gw_jax.models.reference_names import REFERENCE_MNIST, REFERENCE_RESNETS
from gw_jax.models.resnet import ARCHITECTURES
from gw_jax.nn.reference_norms import REFERENCE_NORMS, translate_norm_cfg

# The options of the published models and of the reference's scripts, where a file does not tell.
USUAL_NORM_CFG: dict[str, dict[str, Any]] = {
    "IGWItN": {"T": 5, "num_groups": 64},
    "IGWSVD": {"num_groups": 64},
    "GN": {"num_groups": 32},
    "ItN": {"T": 5},
    "ItNSigma": {"T": 5},
}
DEFAULT_NORM = "IGWItN"
ARCH_CFG_KEYS = ("num_classes", "last", "dropout", "zero_init_residual", "replace_stride_with_dilation", "pretrained")


def check_arguments(arch: str | None, norm: str, arch_cfg: dict[str, Any] | None) -> None:
    """Raises ConfigError unless the arguments of :func:`load_torch` are names that the reference or this project has."""
    known = (*REFERENCE_RESNETS, *REFERENCE_MNIST, *ARCHITECTURES, *MNIST_NETWORKS)
    for what, value, names in (("arch", arch, known), ("norm", norm, tuple(REFERENCE_NORMS))):
        if value is not None and value not in names:
            raise ConfigError(unknown_name(what, value, names))
    if unknown := [key for key in arch_cfg or {} if key not in ARCH_CFG_KEYS]:
        raise ConfigError(f"arch_cfg has the keys {unknown}, which are not known; {', '.join(ARCH_CFG_KEYS)} are.")


def decide_architecture(arch: str | None, inferred: Inferred) -> tuple[str, str]:
    """Name and placement; ``arch`` must agree with what the keys say."""
    if arch is None:
        return inferred.name, inferred.whiten or ("all" if inferred.name.startswith("wide") else "S1")
    name, whiten = REFERENCE_RESNETS.get(arch, (REFERENCE_MNIST.get(arch, arch), inferred.whiten or "S1"))
    if name != inferred.name:
        raise CheckpointError(
            f"arch={arch!r} was asked for, which is a {name}, but the file holds a {inferred.name}: {inferred.evidence}. "
            "Leave arch out to take what is there."
        )
    if inferred.whiten is not None and whiten != inferred.whiten:
        basic = name in ARCHITECTURES and not ARCHITECTURES[name].bottleneck
        if not (basic and {whiten, inferred.whiten} == {"S1-B1", "S1-B2"}):
            raise CheckpointError(
                f"arch={arch!r} was asked for, which has its norm at {whiten}, but the file has it at {inferred.whiten}: "
                f"{inferred.evidence}. The reference calls that {reference_name(name, inferred.whiten)!r}."
            )
    return name, whiten


def reference_name(name: str, whiten: str) -> str | None:
    """The reference's name of the network ``name`` with its norm at ``whiten``, if it has one."""
    for reference, ours in REFERENCE_MNIST.items():
        if ours == name:
            return reference
    matches = [reference for reference, meaning in REFERENCE_RESNETS.items() if meaning == (name, whiten)]
    return matches[0] if matches else None


def decide_norm(
    asked: str,
    asked_cfg: dict[str, Any] | None,
    inferred: Inferred,
    cfg: dict[str, Any],
    guesses: list[str],
    notices: list[str],
) -> tuple[str, dict[str, Any]]:
    """The reference's name and options of the norm; "No" for a network without norms, whatever was said."""
    if inferred.name == "lenet":
        return "No", {}
    candidates = CANDIDATES[inferred.kind or "BN"]
    stored = cfg.get("norm")
    if asked in candidates and (asked != DEFAULT_NORM or stored not in candidates):
        chosen = asked
        if asked == DEFAULT_NORM and stored is None:
            guesses.append(f"norm={chosen} (the default; the keys fit {' and '.join(candidates[1:])}, too)")
    elif stored in candidates:
        chosen = stored
    elif asked != DEFAULT_NORM:
        raise CheckpointError(
            f"norm={asked!r} was asked for, but the norms of the file are of another kind ({inferred.kind or 'BN'}), which "
            f"fits {' or '.join(candidates)}. Pass one of these, or none."
        )
    elif inferred.kind == "iterNorm_Groups":
        raise CheckpointError(
            "The file's norms are ItN or ItNSigma, which have the same keys with different meanings: a running whitening "
            "matrix or a running covariance. Say which: norm='ItN' or norm='ItNSigma' (--norm ItN, --norm ItNSigma)."
        )
    else:
        chosen = candidates[0]
        if len(candidates) > 1:
            guesses.append(f"norm={chosen} (the keys fit {' and '.join(candidates[1:])}, too)")
    if stored is not None and stored != chosen:
        notices.append(f"the training dict's cfg says norm={stored}, which is not what was taken ({chosen})")
    if asked_cfg is not None:
        options = dict(asked_cfg)
    elif stored == chosen and isinstance(cfg.get("norm_cfg"), dict):
        options = dict(cfg["norm_cfg"])
    else:
        options = dict(USUAL_NORM_CFG.get(chosen, {})) if inferred.kind is not None else {}
        if options:
            listed = ", ".join(f"{key}={value}" for key, value in options.items())
            guesses.append(f"norm_cfg {listed} (as in the published models; the file does not tell)")
    if inferred.channels_per_group is not None:
        options.setdefault("num_channels", inferred.channels_per_group)
    # The reference's IN has no scale and bias unless asked, nor have the norms of its MLP with linear layers after them.
    if not inferred.affine or chosen == "IN" or inferred.name == "mlp_norm_linear":
        options.setdefault("affine", inferred.affine)
    return chosen, options


def norm_arguments(norm: str, norm_cfg: dict[str, Any], inferred: Inferred) -> dict[str, Any]:
    """``norm`` and ``norm_options`` of :func:`gw_jax.create_model`, in this project's terms."""
    if inferred.name == "lenet":
        return {}
    try:
        name, options = translate_norm_cfg(norm, norm_cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {"norm": name, "norm_options": options}


def head_arguments(
    name: str, arch_cfg: dict[str, Any], inferred: Inferred, apply_last_norm: bool | None, notices: list[str]
) -> dict[str, Any]:
    """What ``arch_cfg`` says beyond keys and shapes; where it contradicts them it is an error."""
    if name not in ARCHITECTURES:
        return {}
    for key, found in (("num_classes", inferred.options["num_classes"]), ("last", inferred.options["last_norm"])):
        if key in arch_cfg and arch_cfg[key] != found:
            raise CheckpointError(f"arch_cfg {key}={arch_cfg[key]} was asked for, but the file has {found}. Leave it out.")
    head: dict[str, Any] = {}
    resnext = not name.startswith("resnet")
    if inferred.options["last_norm"]:
        head["apply_last_norm"] = (not resnext) if apply_last_norm is None else apply_last_norm
        if not head["apply_last_norm"]:
            notices.append(
                "last_bn is kept but not applied, as in the reference's ResNeXt, where it was never used; "
                "apply_last_norm=True applies it"
            )
    if dropout := arch_cfg.get("dropout"):
        if resnext:
            notices.append(f"dropout={dropout} is left out: the reference's ResNeXt never applied it")
        else:
            head["dropout"] = float(dropout)
    if dilation := arch_cfg.get("replace_stride_with_dilation"):
        head["replace_stride_with_dilation"] = list(dilation)
    return head
