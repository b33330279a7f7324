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
from gw_jax.errors import CheckpointError, ConfigError, one_line, shown
from gw_jax.files import new_directory, require_new, write_error
from gw_jax.models.arguments import Network
from gw_jax.models.hub import download, is_hub_address
from gw_jax.models.remembered import abstract_model, remembered_config, require_config_of, shapes_of
from gw_jax.tree import map_by_path, variables

FORMAT = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"


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
) -> None:
    """As :func:`save_pretrained`, with the variables of the model by path.

    Args:
        directory: the new directory.
        arrays: the variables, by path.
        model_config: the arguments of :func:`gw_jax.create_model` that make the model; JSON values.
        source: the origin of the model, or None; JSON values.
        training: the run that it comes from, or None.

    Raises:
        CheckpointError: ``directory`` exists, or cannot be written.
        ConfigError: a value is no JSON value.
    """
    from safetensors.numpy import save_file

    content: dict[str, Any] = {"format": FORMAT, "gw_jax": __version__, "model": portable(model_config)}
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


def portable(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """``model_config`` without the choice of a kernel, which belongs to a machine and not to a model."""
    config = dict(model_config)
    if isinstance(config.get("norm_options"), Mapping):
        config["norm_options"] = {key: value for key, value in config["norm_options"].items() if key != "implementation"}
    return config


def read_config(directory: str | pathlib.Path) -> dict[str, Any]:
    """The ``config.json`` of a model's directory.

    Raises:
        CheckpointError: there is none, or it is not one of this project's.
    """
    directory = pathlib.Path(directory).expanduser()
    path = directory / CONFIG_FILE
    try:
        if not path.is_file():
            raise CheckpointError(
                f"{one_line(str(directory))} holds no model: there is no {CONFIG_FILE}. 'python -m gw_jax.convert IN.pth "
                "OUT_DIR' makes such a directory, and so does gw_jax.save_pretrained."
            )
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(str(error), 200)}. Make the directory again.") from error
    _check_config(path, config)
    config["model"] = portable(config["model"])
    _check_depth(path, config["model"])
    return config


def _check_config(path: pathlib.Path, config: Any) -> None:
    found = config.get("format") if isinstance(config, dict) else config
    if isinstance(config, dict) and found == FORMAT:
        model, training = config.get("model"), config.get("training")
        epochs = training.get("epochs") if isinstance(training, dict) else 0
        wrong = None
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            wrong = "'model' must be the arguments of create_model with a 'name'"
        elif not isinstance(model.get("norm_options") or {}, dict):
            wrong = "'norm_options' of 'model' must be an object"
        elif training is not None and (not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0):
            wrong = "'training' must have the number of completed 'epochs'"
        if wrong is None:
            return
        raise CheckpointError(f"{path} is damaged: {wrong}. Make the directory again.")
    hint = ""
    if isinstance(config, dict) and "config" in config:
        hint = " It is the work directory of a run; export it with --config.mode=export."
    raise CheckpointError(f"{path} is not the description of a model in format {FORMAT} (found {shown(found)}).{hint}")


def _check_depth(path: pathlib.Path, model_config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for more layers than arrays: making that network could take hours."""
    depth = model_config.get("depth")
    if depth is None or not (path.parent / MODEL_FILE).is_file():
        return
    count = len(_open_arrays(path.parent / MODEL_FILE).keys())
    if not isinstance(depth, int) or not 0 < depth <= count:
        raise CheckpointError(
            f"{path} describes a network of depth {shown(depth)}, but {MODEL_FILE} holds {count} arrays. "
            "Make the directory again."
        )


def _open_arrays(path: pathlib.Path) -> Any:
    from safetensors import safe_open

    try:
        return safe_open(path, "numpy")
    except Exception as error:  # What is raised depends on the version of safetensors.
        raise CheckpointError(
            f"{path} cannot be read: {one_line(str(error), 200)}. Make the directory {path.parent} again."
        ) from error


def read_arrays(directory: str | pathlib.Path, name: str, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of the file ``name``, which must be those of ``shapes``.

    Raises:
        CheckpointError: the file is missing or damaged, or an array is missing, left over, misshapen or not of floating
            point where it should be.
    """
    path = pathlib.Path(directory).expanduser() / name
    file = _open_arrays(path)
    found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    expected = shapes_of(shapes)
    wrong = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
    if wrong:
        named = ", ".join(one_line(key, 120) for key in wrong[:5])
        raise CheckpointError(
            f"The arrays of {path} are not those of the network in {CONFIG_FILE}: {named} are "
            f"missing, left over or of another shape ({len(wrong)} in all). Make the directory again."
        )
    arrays = {}
    for key in found:
        try:
            arrays[key] = file.get_tensor(key)
        except Exception as error:  # Such as a type that NumPy does not have.
            raise CheckpointError(
                f"The array {one_line(key, 120)} of {path} cannot be read: {one_line(str(error), 200)}."
            ) from error
        if jnp.issubdtype(arrays[key].dtype, jnp.floating) != jnp.issubdtype(shapes[key].dtype, jnp.floating):
            raise CheckpointError(
                f"The array {one_line(key, 120)} of {path} is of type {arrays[key].dtype}, which does not fit "
                f"{np.dtype(shapes[key].dtype)}. Make the directory again."
            )
    return arrays


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
