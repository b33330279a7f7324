"""From a ``.pth`` file to a model: which network it is, its arrays, and a report on how both were found."""

import contextlib
import dataclasses
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

from gw_jax.convert.decide import (
    DEFAULT_NORM,
    check_arguments,
    decide_architecture,
    decide_norm,
    head_arguments,
    norm_arguments,
    reference_name,
)
from gw_jax.convert.filling import stream
from gw_jax.convert.infer import infer
from gw_jax.convert.layout import COUNTER, entries
from gw_jax.convert.report import Report
from gw_jax.convert.torch_file import TorchFile, read_torch_file
from gw_jax.convert.training_state import TrainingState, training_state
from gw_jax.errors import ConfigError
from gw_jax.models.pretrained import abstract_model, fill_model
from gw_jax.models.resnet import ARCHITECTURES
from gw_jax.tree import variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a caller says of a file; :func:`load_torch` explains the fields."""

    arch: str | None = None
    norm: str = DEFAULT_NORM
    norm_cfg: dict[str, Any] | None = None
    arch_cfg: dict[str, Any] | None = None
    apply_last_norm: bool | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32


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
        norm: the reference's name of the norm (``--norm``). Where the keys leave no doubt they decide; the default
            gives way to a training dict's ``cfg``.
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
    request = Request(
        arch=arch,
        norm=norm,
        norm_cfg=norm_cfg,
        arch_cfg=arch_cfg,
        apply_last_norm=apply_last_norm,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    imported = read(path, request)
    return fill_model(imported.model, imported.arrays), imported.report


def read(path: str | pathlib.Path, request: Request) -> Imported:
    """As :func:`load_torch`, with the arrays still apart from the model, which is abstract, and with the training state."""
    check_arguments(request.arch, request.norm, request.arch_cfg)
    with paused_garbage_collection():
        return interpret(read_torch_file(pathlib.Path(path).expanduser()), str(path), request)


@contextlib.contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Networks are thousands of small objects; one search for garbage among them took 0.2 s of the 1.4 s of an import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interpret(file: TorchFile, path: str, request: Request) -> Imported:
    """Finds out which network ``file`` holds and takes its entries over."""
    cfg = vars(file.training["cfg"]) if file.training and hasattr(file.training.get("cfg"), "__dict__") else {}
    inferred = infer({key: value.shape for key, value in file.state.items()})
    guesses: list[str] = []
    notices: list[str] = []
    name, whiten = decide_architecture(request.arch, inferred)
    chosen, chosen_cfg = decide_norm(request.norm, request.norm_cfg, inferred, cfg, guesses, notices)
    arch_cfg = dict(cfg.get("arch_cfg") or {}) if request.arch_cfg is None else request.arch_cfg
    model_config = {
        "name": name,
        **inferred.options,
        **({"whiten": whiten} if name in ARCHITECTURES else {}),
        **norm_arguments(chosen, chosen_cfg, inferred),
        **head_arguments(name, arch_cfg, inferred, request.apply_last_norm, notices),
    }
    try:
        model = abstract_model(model_config, request.dtype, request.param_dtype)
        table = entries(model)
    except ValueError as error:
        raise ConfigError(f"The network cannot be made with norm={chosen}, norm_cfg={chosen_cfg}: {error}") from error
    shapes = variables(model)
    ignored = [key for key in file.state if key.endswith(COUNTER) and not any(key == entry.key for entry in table)]
    training = None if file.training is None else training_state(file.training, table, shapes, notices)
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
        reference_name=reference_name(name, whiten),
        evidence=inferred.evidence,
        model_config=model_config,
        num_parameters=sum(int(np.prod(entry.shape)) for entry in table if entry.trained),
        keys_used=used,
        keys_ignored=ignored,
        guesses=guesses,
        notices=[*(["every key had the prefix 'module.', which was removed"] if file.prefixed else []), *notices],
    )
    return Imported(model, model_config, shapes, arrays, report, training)
