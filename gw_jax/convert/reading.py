"""From a ``.pth`` file to a model: which network it is, its arrays, and a report on how both were found."""

import contextlib
import dataclasses
import difflib
import functools
import gc
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.convert.infer import CANDIDATES, Inferred, infer
from gw_jax.convert.layout import COUNTER, Entry, entries, trained_keys, variables
from gw_jax.convert.norms import stream
from gw_jax.convert.pretrained import TrainingState, abstract_model, fill_model
from gw_jax.convert.torch_file import TorchFile, read_torch_file, tensors_to_arrays
from gw_jax.errors import CheckpointError, ConfigError
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


@dataclasses.dataclass
class Report:
    """How a file was read.

    Attributes:
        path: the file.
        sha256: its checksum.
        container: "legacy" or "zip".
        kind: state dict or training dict.
        architecture: this project's name of the network.
        reference_name: the reference's, or None.
        evidence: how the architecture was found.
        model_config: the arguments of :func:`gw_jax.create_model`.
        num_parameters: trained values.
        keys_used: entries of the file that went into the model.
        keys_ignored: entries that say nothing about the function and were not there to fill.
        guesses: what the file does not tell and the caller did not say.
        notices: what else a reader should know.
    """

    path: str
    sha256: str
    container: str
    kind: str
    architecture: str
    reference_name: str | None
    evidence: str
    model_config: dict[str, Any]
    num_parameters: int
    keys_used: list[str]
    keys_ignored: list[str]
    guesses: list[str]
    notices: list[str]

    def __str__(self) -> str:
        """The report, a fact a line."""
        reference = f" (the reference's {self.reference_name})" if self.reference_name else ""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.model_config.items() if key != "name")
        ignored = f"{len(self.keys_ignored)} ignored"
        if self.keys_ignored:
            ignored += f": {', '.join(self.keys_ignored[:3])}{', ...' if len(self.keys_ignored) > 3 else ''}"
        lines = [
            f"file          {self.path}: {self.kind}, {self.container} container",
            f"sha256        {self.sha256}",
            f"architecture  {self.architecture}{reference}",
            f"found by      {self.evidence}",
            f"arguments     {arguments}",
            f"parameters    {self.num_parameters:,}",
            f"keys          {len(self.keys_used)} used, {ignored}",
            *(f"guessed       {guess}" for guess in self.guesses),
            *(f"notice        {notice}" for notice in self.notices),
        ]
        return "\n".join(lines)


@dataclasses.dataclass
class Imported:
    """A network read from a file.

    Attributes:
        model: the network, with shapes in place of arrays.
        model_config: the arguments of :func:`gw_jax.create_model` that make it.
        shapes: shapes and types of its arrays, by path.
        stream: paths and arrays, once, in the order of ``shapes``; :attr:`arrays` has them all.
        report: how it was read.
        training: the training state, if the file has one.
    """

    model: nnx.Module
    model_config: dict[str, Any]
    shapes: dict[str, Any]
    stream: Iterator[tuple[str, np.ndarray]]
    report: Report
    training: TrainingState | None

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by path."""
        return dict(self.stream)


def load_torch(
    path: str | pathlib.Path,
    *,
    arch: str | None = None,
    norm: str = DEFAULT_NORM,
    norm_cfg: dict[str, Any] | None = None,
    arch_cfg: dict[str, Any] | None = None,
    apply_last_norm: bool | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> tuple[Any, Report]:
    """The network of a ``.pth`` file of the reference, or of torchvision's ResNets and ResNeXts.

    Both kinds (``best.pth``, a state dict, and ``checkpoint.pth``, a training dict) are read in both containers (before and
    since PyTorch 1.6). Keys and shapes determine the architecture, the placement of the norm and the blocks of batch
    whitening; what they do not tell comes from the arguments, else from the training dict's own ``cfg``, else it is
    guessed and the guess is in the report.

    Args:
        path: the file.
        arch: the reference's name of the network, to insist on it: ``resnet_whiten_010n50``.
        norm: the reference's name of the norm (``--norm``). Where the keys leave no doubt they decide.
        norm_cfg: its options (``--norm-cfg``), such as ``{"T": 5, "num_groups": 64}``.
        arch_cfg: further options of the network (``--arch-cfg``), such as ``{"last": True}``.
        apply_last_norm: whether ``last_bn`` takes part in the computation. None is what the reference did: yes in ResNets,
            no in ResNeXts, where it is there without being used.
        dtype: type of the activations.
        param_dtype: type of the parameters.

    Returns:
        The model, in evaluation mode, and the :class:`Report`.

    Raises:
        CheckpointError: the file cannot be read, or does not fit: every entry must be used and every array filled.
        ConfigError: an argument is not known, or PyTorch is not installed.
    """
    imported = read(
        path,
        arch=arch,
        norm=norm,
        norm_cfg=norm_cfg,
        arch_cfg=arch_cfg,
        apply_last_norm=apply_last_norm,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return fill_model(imported.model, imported.arrays), imported.report


def read(
    path: str | pathlib.Path,
    *,
    arch: str | None = None,
    norm: str = DEFAULT_NORM,
    norm_cfg: dict[str, Any] | None = None,
    arch_cfg: dict[str, Any] | None = None,
    apply_last_norm: bool | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Imported:
    """As :func:`load_torch`, with the arrays still apart from the model, which is abstract, and with the training state."""
    check_arguments(arch, norm, arch_cfg)
    with paused_garbage_collection():
        file = read_torch_file(pathlib.Path(path))
        return interpret(
            file,
            str(path),
            arch=arch,
            norm=norm,
            norm_cfg=norm_cfg,
            arch_cfg=arch_cfg,
            apply_last_norm=apply_last_norm,
            dtype=dtype,
            param_dtype=param_dtype,
        )


@contextlib.contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Networks are thousands of small objects; looking for garbage among them took a quarter of the time of an import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interpret(
    file: TorchFile,
    path: str,
    *,
    arch: str | None,
    norm: str,
    norm_cfg: dict[str, Any] | None,
    arch_cfg: dict[str, Any] | None,
    apply_last_norm: bool | None,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
) -> Imported:
    """Finds out which network ``file`` holds and takes its entries over; arguments are as for :func:`load_torch`."""
    cfg = vars(file.training["cfg"]) if file.training and hasattr(file.training.get("cfg"), "__dict__") else {}
    inferred = infer({key: value.shape for key, value in file.state.items()})
    guesses: list[str] = []
    notices: list[str] = []
    name, whiten = _architecture(arch, inferred)
    chosen, chosen_cfg = _norm(norm, norm_cfg, inferred, cfg, guesses, notices)
    arch_cfg = dict(cfg.get("arch_cfg") or {}) if arch_cfg is None else arch_cfg
    model_config = {
        "name": name,
        **inferred.options,
        **({"whiten": whiten} if name in ARCHITECTURES else {}),
        **_norm_arguments(chosen, chosen_cfg, inferred),
        **_head(name, arch_cfg, inferred, apply_last_norm, notices),
    }
    try:
        model = abstract_model(model_config, dtype, param_dtype)
        table = entries(model)
    except ValueError as error:
        raise ConfigError(f"The network cannot be made with norm={chosen}, norm_cfg={chosen_cfg}: {error}") from error
    shapes = variables(model)
    ignored = [key for key in file.state if key.endswith(COUNTER) and not any(key == entry.key for entry in table)]
    training = None if file.training is None else _training_state(file, table, shapes, notices)
    used = [entry.key for entry in table if entry.key in file.state]
    means = [value for key, value in file.state.items() if re.search(r"DBN(Sigma)?_Groups\.\d+\.running_mean$", key)]
    if means and not any(mean.any() for mean in means):
        notices.append(
            "the running means of the batch whitening are all zero: the reference lost them on several GPUs. Train on, or "
            "recompute them, before you evaluate"
        )
    arrays = stream(table, file.state, shapes, path)
    report = Report(
        path=path,
        sha256=file.checksum.result(),
        container=file.container,
        kind=file.kind,
        architecture=name,
        reference_name=_reference_name(name, whiten, inferred),
        evidence=inferred.evidence,
        model_config=model_config,
        num_parameters=sum(int(np.prod(entry.shape)) for entry in table if entry.trained),
        keys_used=used,
        keys_ignored=ignored,
        guesses=guesses,
        notices=[*(["every key had the prefix 'module.', which was removed"] if file.prefixed else []), *notices],
    )
    return Imported(model, model_config, shapes, arrays, report, training)


def check_arguments(arch: str | None, norm: str, arch_cfg: dict[str, Any] | None) -> None:
    """Raises ConfigError unless the arguments of :func:`load_torch` are names that the reference or this project has."""
    known = (*REFERENCE_RESNETS, *REFERENCE_MNIST, *ARCHITECTURES, *MNIST_NETWORKS)
    for what, value, names in (("arch", arch, known), ("norm", norm, tuple(REFERENCE_NORMS))):
        if value is not None and value not in names:
            close = difflib.get_close_matches(value, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{what}={value!r} is no name of the reference; it has {', '.join(dict.fromkeys(names))}.{hint}"
            )
    if unknown := [key for key in arch_cfg or {} if key not in ARCH_CFG_KEYS]:
        raise ConfigError(f"arch_cfg has the keys {unknown}, which are not known; {', '.join(ARCH_CFG_KEYS)} are.")


def _architecture(arch: str | None, inferred: Inferred) -> tuple[str, str]:
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
                f"{inferred.evidence}. The reference calls that {_reference_name(name, inferred.whiten, inferred)!r}."
            )
    return name, whiten


def _reference_name(name: str, whiten: str, inferred: Inferred) -> str | None:
    for reference, ours in REFERENCE_MNIST.items():
        if ours == name:
            return reference
    matches = [reference for reference, meaning in REFERENCE_RESNETS.items() if meaning == (name, whiten)]
    return matches[0] if matches else None


def _norm(
    asked: str,
    asked_cfg: dict[str, Any] | None,
    inferred: Inferred,
    cfg: dict[str, Any],
    guesses: list[str],
    notices: list[str],
) -> tuple[str, dict[str, Any]]:
    """The reference's name and options of the norm."""
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


def _norm_arguments(norm: str, norm_cfg: dict[str, Any], inferred: Inferred) -> dict[str, Any]:
    """``norm`` and ``norm_options`` of :func:`gw_jax.create_model`, in this project's terms."""
    if inferred.name in ("lenet", "autoencoder"):
        return {}
    try:
        name, options = translate_norm_cfg(norm, norm_cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {"norm": name, "norm_options": options}


def _head(
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


def _training_state(file: TorchFile, table: list[Entry], shapes: dict[str, Any], notices: list[str]) -> TrainingState:
    training = file.training or {}
    optimizer = tensors_to_arrays(training.get("optimizer") or {})
    epoch = training.get("epoch")
    facts: dict[str, Any] = {}
    groups = optimizer.get("param_groups") or [{}]
    for ours, theirs in (("learning_rate", "lr"), ("momentum", "momentum"), ("weight_decay", "weight_decay")):
        if isinstance(groups[0].get(theirs), (int, float)):
            facts[ours] = groups[0][theirs]
    if "best_prec1" in training:
        # Six digits of a float32 percentage.
        facts["best_top1"] = round(float(tensors_to_arrays(training["best_prec1"])) / 100, 6)
    if "best_acc" in training:
        facts["best_acc"] = float(tensors_to_arrays(training["best_acc"]))
    momentum = _momentum(optimizer, groups, table, shapes, notices)
    return TrainingState(epochs=(epoch if isinstance(epoch, int) else -1) + 1, momentum=momentum, facts=facts)


def _momentum(
    optimizer: dict[str, Any],
    groups: list[dict[str, Any]],
    table: list[Entry],
    shapes: dict[str, Any],
    notices: list[str],
) -> dict[str, np.ndarray]:
    """Momentum buffers by path. PyTorch numbers parameters in the order of ``model.parameters()``, or names them by id."""
    state = optimizer.get("state") or {}
    if not state:
        notices.append("the optimizer holds no momentum; training starts with none")
        return {}
    order = [number for group in groups for number in group.get("params", [])]
    parameters = trained_keys(table)
    buffers = {number: values.get("momentum_buffer") for number, values in state.items()}
    if len(order) != len(parameters) or not any(isinstance(value, np.ndarray) for value in buffers.values()):
        notices.append(
            f"the optimizer's state is not that of SGD with momentum over the {len(parameters)} parameters; it was left out"
        )
        return {}
    momentum = {entry.path: np.zeros(shapes[entry.path].shape, shapes[entry.path].dtype) for entry in parameters}
    for entry, number in zip(parameters, order, strict=True):
        buffer = buffers.get(number)
        # Parameters that never had a gradient, such as those of an unused last_bn, have no buffer.
        if isinstance(buffer, np.ndarray):
            if buffer.shape != entry.shape:
                raise CheckpointError(
                    f"The momentum of {entry.key!r} is of shape {list(buffer.shape)} and its parameter of "
                    f"{list(entry.shape)}: the optimizer in the file belongs to another network."
                )
            entry.put(momentum[entry.path], buffer)
    return momentum
