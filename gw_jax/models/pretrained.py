"""Models in a directory: ``model.safetensors`` with the arrays and ``config.json`` with the network's arguments."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gw_jax._version import __version__
from gw_jax.errors import CheckpointError, ConfigError, one_line
from gw_jax.files import new_directory, require_new, write_error
from gw_jax.models.arguments import Network
from gw_jax.models.hub import download, is_hub_address
from gw_jax.models.remembered import abstract_model, remembered_config, require_config_of
from gw_jax.models.saved_files import (
    CONFIG_FILE,
    FORMAT,
    MODEL,
    MODEL_FILE,
    TRAINING_FILE,
    portable,
    read_arrays,
    read_config,
)
from gw_jax.tree import map_by_path, variables


@dataclasses.dataclass
class TrainingState:
    """The state of a training run, from which it can be resumed.

    Attributes:
        epochs: completed epochs.
        momentum: SGD's momentum buffers by path of the parameter; empty if there are none.
        facts: learning rate, best top-1 and the like, for ``config.json``; JSON values.
    """

    epochs: int
    momentum: dict[str, np.ndarray]
    facts: dict[str, Any]


def fill_model(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> Any:
    """``model``, which may be abstract, with ``arrays`` (by path) as its variables, in evaluation mode."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)

    def array_of(path: str, leaf: Any) -> jax.Array:
        return jnp.asarray(arrays[path], leaf.dtype)

    filled = [map_by_path(array_of, nnx.to_pure_dict(state)) for state in states]
    model = nnx.merge(graphdef, *filled)
    model.eval()
    return model


def save_pretrained(
    directory: str | pathlib.Path,
    model: nnx.Module,
    model_config: Mapping[str, Any] | None = None,
    *,
    source: Mapping[str, Any] | None = None,
    training: TrainingState | None = None,
) -> None:
    """Writes a model so that :func:`load_pretrained` needs nothing else. The directory appears whole or not at all.

    Args:
        directory: the new directory.
        model: the network.
        model_config: the arguments of :func:`gw_jax.create_model` that make it, without ``rngs``, ``dtype`` and
            ``param_dtype``; JSON values. None for those that the model remembers.
        source: where it comes from, a human-readable addition to ``config.json``; JSON values.
        training: the run that it comes from, for ``config.resume_from`` of ``train.py``.

    Raises:
        CheckpointError: ``directory`` exists, or cannot be written.
        ConfigError: the model does not remember how it was made, or was changed since, such as by
            :func:`gw_jax.swap_norms`; ``model_config`` makes another network; a value is no JSON value.

    Example:
        >>> import gw_jax, os, tempfile
        >>> from flax import nnx
        >>> model = gw_jax.create_model("mlp", num_classes=3, norm="gn", norm_options={"num_groups": 4}, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     gw_jax.save_pretrained(f"{directory}/model", model)
        ...     print(sorted(os.listdir(f"{directory}/model")), type(gw_jax.load_pretrained(f"{directory}/model")).__name__)
        ['config.json', 'model.safetensors'] MLP
    """
    arrays = {path: np.asarray(leaf) for path, leaf in variables(model).items()}
    if model_config is None:
        config: Mapping[str, Any] = remembered_config(model)
    else:
        config = model_config
        require_config_of(model, config)
    write_directory(directory, arrays, config, source=source, training=training)


def write_directory(
    directory: str | pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    model_config: Mapping[str, Any],
    *,
    source: Mapping[str, Any] | None,
    training: TrainingState | None,
    kind: str = MODEL,
) -> None:
    """As :func:`save_pretrained`, with the variables of the model by path.

    Args:
        directory: the new directory.
        arrays: the variables, by path.
        model_config: the arguments of :func:`gw_jax.create_model` that make the model; JSON values.
        source: the origin of the model, or None; JSON values.
        training: the run that it comes from, or None.
        kind: :data:`MODEL`, or :data:`DETECTOR` with the arguments of ``create_detector``.

    Raises:
        CheckpointError: ``directory`` exists, or cannot be written.
        ConfigError: a value is no JSON value.
    """
    from safetensors.numpy import save_file

    content: dict[str, Any] = {"format": FORMAT, "gw_jax": __version__, kind: portable(model_config)}
    if source is not None:
        content["source"] = dict(source)
    if training is not None:
        content["training"] = {"epochs": training.epochs, **training.facts}
    try:
        text = json.dumps(content, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The description of the model cannot be written to {CONFIG_FILE}: {error}.") from error
    directory = pathlib.Path(directory).expanduser()
    require_new(directory)
    try:
        with new_directory(directory) as temporary:
            save_file(dict(arrays), temporary / MODEL_FILE)
            if training is not None and training.momentum:
                save_file(training.momentum, temporary / TRAINING_FILE)
            (temporary / CONFIG_FILE).write_text(text)
    except Exception as error:  # safetensors reports a full disk by an exception of its own.
        raise write_error(directory, error) from error


def load_pretrained(
    directory: str | pathlib.Path, *, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32
) -> Network:
    """The model that :func:`save_pretrained` or ``python -m gw_jax.convert`` wrote, in evaluation mode.

    Args:
        directory: the model's directory, or ``"hf://OWNER/NAME[@REVISION][/SUBFOLDER]"`` on the Hugging Face Hub (extra
            ``hub``); downloaded files stay in the hub's cache, which ``HF_HUB_OFFLINE=1`` uses alone.
        dtype: type of the activations, such as ``jnp.bfloat16``.
        param_dtype: type of the parameters.

    Raises:
        CheckpointError: the directory or a file of it is missing, damaged or inconsistent, or cannot be downloaded.
        ConfigError: the package for the hub is not installed, or the address is malformed.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> model = gw_jax.create_model("mlp", num_classes=10, in_channels=1, image_size=8, width=16, rngs=nnx.Rngs(0))
        >>> gw_jax.save_pretrained("models/mine", model)
        >>> type(gw_jax.load_pretrained("models/mine")).__name__
        'MLP'
    """
    if is_hub_address(directory):
        directory = download(str(directory))
    config = read_config(directory)
    try:
        model = abstract_model(config["model"], dtype, param_dtype)
    except Exception as error:  # The file decides which of create_model's errors comes.
        raise CheckpointError(
            f"The network of {pathlib.Path(directory) / CONFIG_FILE} cannot be made: {one_line(str(error))}"
        ) from error
    return fill_model(model, read_arrays(directory, MODEL_FILE, variables(model)))
