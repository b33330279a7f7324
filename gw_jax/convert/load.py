"""Loading of ``.pth`` files: the network, its arrays, and a report on how both were found."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.convert.entries import COUNTER, TORCH_SHAPE, Entry, entries
from gw_jax.convert.file_errors import file_errors
from gw_jax.convert.fill import fill
from gw_jax.convert.identify import identify
from gw_jax.convert.options import architecture_name, check_arguments, head_options, norm_options, reference_name
from gw_jax.convert.report import Report
from gw_jax.convert.torch_file import TorchFile, read_torch_file
from gw_jax.convert.training_state import read_training_state
from gw_jax.errors import CheckpointError, ConfigError, shown
from gw_jax.models.pretrained import TrainingState, fill_model
from gw_jax.models.remembered import abstract_model
from gw_jax.models.resnet import ARCHITECTURES
from gw_jax.nn import make_norm
from gw_jax.nn.reference_norms import REFERENCE_NORMS, translate_norm_cfg
from gw_jax.tree import variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The arguments of :func:`load_torch`, which explains them, without the path."""

    arch: str | None = None
    norm: str | None = None
    norm_cfg: Mapping[str, Any] | None = None
    arch_cfg: Mapping[str, Any] | None = None
    apply_last_norm: bool | None = None
    ema: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network read from a file.

    Attributes:
        model: the network, with shapes in place of arrays.
        model_config: the arguments of :func:`gw_jax.create_model` that make it.
        arrays: its arrays, by path.
        report: how it was read.
        training: the training state, if the file has one.
    """

    model: nnx.Module
    model_config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    report: Report
    training: TrainingState | None


def load_torch(
    path: str | pathlib.Path,
    *,
    arch: str | None = None,
    norm: str | None = None,
    norm_cfg: Mapping[str, Any] | None = None,
    arch_cfg: Mapping[str, Any] | None = None,
    apply_last_norm: bool | None = None,
    ema: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> tuple[Any, Report]:
    """The network of a ``.pth`` file of the reference, or of torchvision's ResNets and ResNeXts.

    Both kinds (``best.pth``, a state dict, and ``checkpoint.pth``, a training dict) are read in both containers (before and
    since PyTorch 1.6). Keys and shapes determine the architecture, the placement of the norm and the blocks of batch
    whitening. The rest comes from the arguments, else from the training dict's own ``cfg``, else it is guessed and the
    guess is in the report.

    Args:
        path: the file.
        arch: the reference's name of the network, to insist on it: ``resnet_whiten_010n50``.
        norm: the reference's name of the norm (``--norm``), to insist on it. None: where the keys fit several, the one in
            a training dict's ``cfg``, else ``IGWItN`` if it is among them.
        norm_cfg: its options (``--norm-cfg``), such as ``{"T": 5, "num_groups": 64}``. Those of the published models
            complete them.
        arch_cfg: further options of the network (``--arch-cfg``), such as ``{"last": True}``.
        apply_last_norm: whether ``last_bn`` is part of the computation. None is what the reference did: yes in ResNets,
            no in ResNeXts, where it is there without being used.
        ema: whether to read the averaged weights of a training dict that has both.
        dtype: type of the activations.
        param_dtype: type of the parameters.

    Returns:
        The model, in evaluation mode, and the :class:`Report`.

    Raises:
        CheckpointError: the file cannot be read, or does not fit: every entry must be used and every array filled.
        ConfigError: an argument is not known, or PyTorch is not installed.

    Example:
        >>> import gw_jax  # needs PyTorch
        >>> from flax import nnx
        >>> model = gw_jax.create_model("mlp", num_classes=10, in_channels=1, image_size=28, norm="bn", rngs=nnx.Rngs(0))
        >>> gw_jax.convert.write_torch_file("mlp.pth", gw_jax.convert.to_torch_state(model))
        >>> again, report = gw_jax.convert.load_torch("mlp.pth")
        >>> report.architecture, again.head.kernel.shape
        ('mlp', (100, 10))
    """
    options = LoadOptions(
        arch=arch,
        norm=norm,
        norm_cfg=norm_cfg,
        arch_cfg=arch_cfg,
        apply_last_norm=apply_last_norm,
        ema=ema,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    loaded = read(path, options)
    return fill_model(loaded.model, loaded.arrays), loaded.report


def read(path: str | pathlib.Path, options: LoadOptions) -> LoadedModel:
    """As :func:`load_torch`, with the arrays still apart from the model, which is abstract, and with the training state."""
    check_arguments(options.arch, options.norm, options.arch_cfg)
    return load_state(read_torch_file(pathlib.Path(path).expanduser(), ema=options.ema), str(path), options)


def load_state(file: TorchFile, path: str, options: LoadOptions) -> LoadedModel:
    """Identifies the network in ``file`` and moves its entries out of it to arrays; ``path`` is its name in messages."""
    with file_errors(path):
        return _load_state(file, path, options)


def _load_state(file: TorchFile, path: str, options: LoadOptions) -> LoadedModel:
    state = file.weights.state
    cfg = (file.training or {}).get("cfg")
    cfg = cfg if isinstance(cfg, dict) else {}
    found = identify({key: value.shape for key, value in state.items()})
    name, whiten = architecture_name(options.arch, found)
    norm = norm_options(options.norm, options.norm_cfg, found, cfg)
    head = head_options(name, options.arch_cfg, found, options.apply_last_norm, cfg)
    placement = {"whiten": whiten} if name in ARCHITECTURES else {}
    model_config = {"name": name, **found.options, **placement, **norm.arguments, **head.arguments}
    try:
        model = abstract_model(model_config, options.dtype, options.param_dtype)
        table = _entries(model, path, 2 * len(state) + 10_000)
    except ValueError as error:
        raise ConfigError(f"The network cannot be made with {shown(norm.arguments, 300)}: {error}") from error
    shapes = variables(model)
    keys = {entry.key for entry in table}
    used = [entry.key for entry in table if entry.key in state]
    ignored = [*file.weights.ignored, *(key for key in state if key.endswith(COUNTER) and key not in keys)]
    notices = [*file.weights.notices, *norm.notices, *head.notices, *_lost_statistics(state)]
    arrays = fill(table, state, shapes, path)
    training = None
    if file.training is not None:
        training, more = read_training_state(file.training, table, shapes, path)
        notices += more
        if options.ema and training.momentum:
            notices.append("the momentum belongs to the weights of the last step, not to the averaged ones")
    report = Report(
        path=path,
        sha256=file.sha256,
        container=file.container,
        kind=file.kind,
        architecture=name,
        reference_name=reference_name(name, whiten),
        evidence=found.evidence,
        model_config=model_config,
        num_parameters=sum(int(np.prod(entry.shape)) for entry in table if entry.trained),
        keys_used=used,
        keys_ignored=ignored,
        guesses=[*norm.guesses, *head.guesses],
        notices=notices,
    )
    return LoadedModel(model, model_config, arrays, report, training)


def _entries(model: nnx.Module, path: str, limit: int) -> list[Entry]:
    """The entries of ``model``; no more than fit the file, which may claim any number of groups."""
    table = list(itertools.islice(entries(model), limit + 1))
    if len(table) > limit:
        raise CheckpointError(f"The shapes in {path} belong to a network with many more entries than the file has.")
    return table


def _lost_statistics(state: Mapping[str, np.ndarray]) -> list[str]:
    means = [value for key, value in state.items() if re.search(r"DBN(Sigma)?_Groups\.\d+\.running_mean$", key)]
    if not means or any(mean.any() for mean in means):
        return []
    return [
        "the running means of the batch whitening are all zero: the reference lost them on several GPUs. Continue the "
        "training, or recompute them, before you evaluate"
    ]


def norm_from_torch(
    norm: str, num_features: int, norm_cfg: Mapping[str, Any] | None, state: Mapping[str, np.ndarray], **options: Any
) -> nnx.Module:
    """The reference's norm as a layer, with the parameters and buffers of ``state``.

    Args:
        norm: the reference's name, as on its ``--norm``.
        num_features: channels.
        norm_cfg: its options, as on its ``--norm-cfg``; the reference's defaults stand for those left out.
        state: its state dict, names and arrays. Buffers may be left out all together; they have their initial values then.
        **options: further arguments of the layer: ``dtype``, ``param_dtype`` (the type of the arrays of ``state``, if not
            given), ``group_size``, ``axis_name``.

    Returns:
        The layer, in training mode like every new one. :func:`to_torch_state` gives ``state`` back.

    Raises:
        ValueError: an unknown norm or option.
        CheckpointError: an entry is missing, left over, misshapen or not finite.

    Example:
        >>> import numpy as np
        >>> import gw_jax
        >>> state = {"weight": np.ones((1, 8, 1, 1), np.float32), "bias": np.zeros((1, 8, 1, 1), np.float32)}
        >>> norm = gw_jax.convert.norm_from_torch("IGWItN", 8, {"T": 5, "num_groups": 4}, state)
        >>> norm.num_groups, norm.scale.shape
        (4, (8,))
    """
    name, translated = translate_norm_cfg(norm, dict(norm_cfg or {}))
    floating = [value.dtype for value in state.values() if jnp.issubdtype(value.dtype, jnp.floating)]
    if name != "none":
        default = jnp.zeros((), floating[0]).dtype if floating else jnp.zeros(()).dtype
        options.setdefault("param_dtype", default)
    layer: Any = make_norm(name, num_features, rngs=nnx.Rngs(0), **translated, **options)
    # The layer accepts any number of axes; the shape of weight and bias in the reference depends on it.
    weight = state.get("weight")
    dim = (norm_cfg or {}).get("dim", 4) if weight is None or weight.ndim == 1 else weight.ndim
    table = list(entries(layer, dim=dim))
    shapes = variables(layer)
    if not any(entry.key in state for entry in table if not entry.trained):
        table = [entry for entry in table if entry.trained]
        shapes = {entry.path: shapes[entry.path] for entry in table}
    arrays = fill(table, dict(state), shapes, f"the state of {norm} ({REFERENCE_NORMS[norm]})")
    for path, value in arrays.items():
        getattr(layer, path)[...] = jnp.asarray(value)
    usual = {entry.key: entry.shape for entry in entries(layer)}
    for entry in table:
        if entry.shape != usual[entry.key]:
            metadata: dict[str, Any] = {TORCH_SHAPE: entry.shape}
            setattr(layer, entry.path, nnx.Param(getattr(layer, entry.path)[...], **metadata))
    return layer
