"""Models in a directory: ``model.safetensors`` with the arrays and ``config.json`` with what makes the network."""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gw_jax._version import __version__
from gw_jax.convert.layout import map_by_path, variables
from gw_jax.convert.training_state import TrainingState
from gw_jax.errors import CheckpointError
from gw_jax.files import new_directory
from gw_jax.models import create_model
from gw_jax.nn.initializers import NoKeys

FORMAT = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"

# The types that parameters and statistics have, as the format calls them.
SAFETENSORS_TYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32"}


def abstract_model(model_config: Mapping[str, Any], dtype: DTypeLike | None, param_dtype: DTypeLike) -> nnx.Module:
    """The network of ``model_config`` (arguments of :func:`gw_jax.create_model`) with shapes in place of arrays."""
    return create_model(**model_config, dtype=dtype, param_dtype=param_dtype, rngs=NoKeys())


def fill_model(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> nnx.Module:
    """``model``, which may be abstract, with ``arrays`` (by path) as its variables, in evaluation mode."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)

    def take(path: str, leaf: Any) -> jax.Array:
        return jnp.asarray(arrays[path], leaf.dtype)

    filled = [map_by_path(take, nnx.to_pure_dict(state)) for state in states]
    model = nnx.merge(graphdef, *filled)
    model.eval()
    return model


def save_pretrained(
    directory: str | pathlib.Path,
    model: nnx.Module,
    model_config: Mapping[str, Any],
    *,
    source: Mapping[str, Any] | None = None,
    training: TrainingState | None = None,
) -> None:
    """Writes a model so that :func:`load_pretrained` needs nothing else. The directory appears whole or not at all.

    Args:
        directory: the new directory.
        model: the network.
        model_config: the arguments of :func:`gw_jax.create_model` that make it, without ``rngs``, ``dtype`` and
            ``param_dtype``; JSON values.
        source: where it comes from, for people.
        training: for ``train.py`` to go on with.

    Raises:
        CheckpointError: ``directory`` exists, or cannot be written.
    """
    arrays = variables(model)
    write_directory(directory, arrays, iter(arrays.items()), model_config, source=source, training=training)


def write_directory(
    directory: str | pathlib.Path,
    shapes: Mapping[str, Any],
    arrays: Iterator[tuple[str, Any]],
    model_config: Mapping[str, Any],
    *,
    source: Mapping[str, Any] | None,
    training: TrainingState | None,
) -> None:
    """As :func:`save_pretrained`, with the arrays as they come: paths and arrays in the order of ``shapes``."""
    content: dict[str, Any] = {"format": FORMAT, "gw_jax": __version__, "model": dict(model_config)}
    if source is not None:
        content["source"] = dict(source)
    if training is not None:
        content["training"] = {"epochs": training.epochs, **training.facts}
    directory = pathlib.Path(directory).expanduser()
    require_new(directory)
    try:
        with new_directory(directory) as temporary:
            write_safetensors(temporary / MODEL_FILE, shapes, arrays)
            if training is not None and training.momentum:
                write_safetensors(temporary / TRAINING_FILE, training.momentum, iter(training.momentum.items()))
            (temporary / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written: {error}. Nothing was left there.") from error


def write_safetensors(path: pathlib.Path, shapes: Mapping[str, Any], arrays: Iterator[tuple[str, Any]]) -> None:
    """Writes a safetensors file array by array, in the order of ``shapes``.

    The library's own function wants all arrays at once and copies them; this one writes each while the next is made.
    """
    header, offset = {}, 0
    for name, leaf in shapes.items():
        end = offset + math.prod(leaf.shape) * leaf.dtype.itemsize
        kind = SAFETENSORS_TYPES[leaf.dtype.name]
        header[name] = {"dtype": kind, "shape": list(leaf.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (written, array) in zip(shapes, arrays, strict=True):
            if name != written:
                raise ValueError(f"The array {written!r} came where {name!r} was due.")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def require_new(path: pathlib.Path) -> None:
    """Raises CheckpointError if there is something at ``path``."""
    if path.exists():
        raise CheckpointError(f"{path} exists already; it was not touched. Give another name, or move it away first.")


def read_config(directory: str | pathlib.Path) -> dict[str, Any]:
    """The ``config.json`` of a model's directory.

    Raises:
        CheckpointError: there is none, or it is not one of this project's.
    """
    path = pathlib.Path(directory).expanduser() / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{directory} holds no model: there is no {CONFIG_FILE}. 'python -m gw_jax.convert IN.pth OUT_DIR' makes such "
            "a directory, and so does gw_jax.convert.save_pretrained."
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Make the directory again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        hint = " It is the work directory of a run; export it with --config.mode=export." if "config" in config else ""
        raise CheckpointError(f"{path} is not the description of a model in format {FORMAT} (found {found}).{hint}")
    return config


def read_arrays(directory: str | pathlib.Path, name: str, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of the file ``name``, which must be those of ``shapes``.

    Raises:
        CheckpointError: the file is missing or damaged, or an array is missing, left over or misshapen.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = pathlib.Path(directory).expanduser() / name
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Make the directory {directory} again.") from error
    wrong = sorted(
        {*shapes} ^ {*arrays} | {key for key in {*shapes} & {*arrays} if tuple(shapes[key].shape) != arrays[key].shape}
    )
    if wrong:
        raise CheckpointError(
            f"The arrays of {path} are not those of the network in {CONFIG_FILE}: {', '.join(wrong[:5])} are missing, left "
            f"over or of another shape ({len(wrong)} in all). Make the directory again."
        )
    return arrays


def load_pretrained(
    directory: str | pathlib.Path, *, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32
) -> Any:
    """The model that :func:`save_pretrained` or ``python -m gw_jax.convert`` wrote, in evaluation mode.

    Args:
        directory: the model's directory.
        dtype: type of the activations, such as ``jnp.bfloat16``.
        param_dtype: type of the parameters.

    Raises:
        CheckpointError: the directory or a file of it is missing, damaged or inconsistent.
    """
    config = read_config(directory)
    try:
        model = abstract_model(config["model"], dtype, param_dtype)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The network of {pathlib.Path(directory) / CONFIG_FILE} cannot be made: {error}") from error
    return fill_model(model, read_arrays(directory, MODEL_FILE, variables(model)))
