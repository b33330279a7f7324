"""The files of a saved network: ``config.json`` and the arrays in ``model.safetensors``, read with checks."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gw_jax.errors import CheckpointError, one_line, shown
from gw_jax.models.remembered import shapes_of

FORMAT = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"

# The entries of config.json under which the arguments of the networks are, and what makes networks of them.
MODEL, DETECTOR = "model", "detector"
_MAKERS = {MODEL: "create_model", DETECTOR: "create_detector"}
# Where a directory with another network than the one to load belongs.
_ADVICE = {
    MODEL: "a network of gw_jax.create_model and no detector; gw_jax.load_pretrained loads it, and a detector can start "
    "from it",
    DETECTOR: "a detector; gw_jax.detection.load_detector loads it",
}
_NAMES = {MODEL: "model", DETECTOR: "detector"}
_WRITERS = {
    MODEL: "'python -m gw_jax.convert IN.pth OUT_DIR' makes such a directory, and so does gw_jax.save_pretrained.",
    DETECTOR: "'python -m gw_jax.detection.convert IN.pth OUT_DIR' makes such a directory, and so does "
    "gw_jax.detection.save_detector.",
}


def portable(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """``model_config`` without the choice of a kernel, which belongs to a machine and not to a model."""
    config = dict(model_config)
    if isinstance(config.get("norm_options"), Mapping):
        config["norm_options"] = {key: value for key, value in config["norm_options"].items() if key != "implementation"}
    return config


def holds(directory: str | pathlib.Path, kind: str) -> bool:
    """Whether a directory has the description of a network of ``kind``, :data:`MODEL` or :data:`DETECTOR`."""
    try:
        config = json.loads((pathlib.Path(directory).expanduser() / CONFIG_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and kind in config


def read_config(directory: str | pathlib.Path, kind: str = MODEL) -> dict[str, Any]:
    """The ``config.json`` of a model's directory.

    Args:
        directory: the model's directory.
        kind: :data:`MODEL` or :data:`DETECTOR`.

    Raises:
        CheckpointError: there is none, or it is not one of this project's, or that of a network of the other kind.
    """
    directory = pathlib.Path(directory).expanduser()
    path = directory / CONFIG_FILE
    try:
        if not path.is_file():
            raise CheckpointError(
                f"{one_line(str(directory))} holds no {_NAMES[kind]}: there is no {CONFIG_FILE}. {_WRITERS[kind]}"
            )
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(str(error), 200)}. Make the directory again.") from error
    _check_config(path, config, kind)
    config[kind] = portable(config[kind])
    _check_depth(path, config[kind])
    return config


def _check_config(path: pathlib.Path, config: Any, kind: str) -> None:
    found = config.get("format") if isinstance(config, dict) else config
    if isinstance(config, dict) and found == FORMAT:
        model, training = config.get(kind), config.get("training")
        epochs = training.get("epochs") if isinstance(training, dict) else 0
        name = "name" if kind == MODEL else "backbone"
        wrong = None
        if model is None and (other := next((other for other in _MAKERS if other in config), None)):
            raise CheckpointError(f"{one_line(str(path.parent))} holds {_ADVICE[other]}.")
        if not isinstance(model, dict) or not isinstance(model.get(name), str if kind == MODEL else (str, dict)):
            wrong = f"{kind!r} must be the arguments of {_MAKERS[kind]} with a {name!r}"
        elif not isinstance(model.get("norm_options") or {}, dict):
            wrong = f"'norm_options' of {kind!r} must be an object"
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
    if isinstance(backbone := model_config.get("backbone"), dict):
        sizes = backbone.get("stage_sizes")
        whole = isinstance(sizes, list) and all(isinstance(size, int) and size > 0 for size in sizes)
        depth = sum(sizes) if whole else 0  # type: ignore[arg-type]
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
