"""Weights of an exported or converted classifier for a warm start."""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any

from flax import nnx

from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models import create_model
from gw_jax.models.saved_files import MODEL_FILE, TRAINING_FILE, read_arrays, read_config
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.train.state import model_to_dicts
from gw_jax.train.task import Weights
from gw_jax.tree import by_path, variables

# Arguments that may differ from the run's: they do not change what the network computes in evaluation.
MAY_DIFFER = ("batch_norm_options", "dropout", "zero_init_residual")
# Options of norms that may differ likewise.
_OPTIONS_THAT_MAY_DIFFER = ("group_size", "implementation")

Make = Callable[[dict[str, Any], nnx.Rngs], nnx.Module]


def read_weights(directory: pathlib.Path, arguments: dict[str, Any], make: Make, *, new_head: bool) -> Weights:
    """Reads the parameters and statistics of a model, and its training state if it has one.

    Args:
        directory: written by ``python -m gw_jax.convert`` or ``mode=export``.
        arguments: those of :func:`gw_jax.create_model` for the run's network.
        make: makes a network from such arguments.
        new_head: whether the number of classes may differ, and the last layer is left out.

    Raises:
        CheckpointError: the directory is damaged.
        ConfigError: it holds another network.
    """
    description = read_config(directory)
    stored = description["model"]
    if new_head:
        arguments = {**arguments, "num_classes": stored.get("num_classes", arguments["num_classes"])}
    model = _check_same_network(arguments, stored, directory, make)
    arrays = dict(read_arrays(directory, MODEL_FILE, variables(model)))
    if new_head:
        arrays = {path: array for path, array in arrays.items() if not path.startswith("head.")}
    training = description.get("training")
    momentum = None
    if training is not None and (directory / TRAINING_FILE).exists():
        momentum = read_arrays(directory, TRAINING_FILE, by_path(model_to_dicts(model)[1]))
    return Weights(arrays, training, momentum)


def _check_same_network(
    arguments: dict[str, Any], stored: dict[str, Any], directory: pathlib.Path, make: Make
) -> nnx.Module:
    """The network of ``stored``, without values, which must be that of ``arguments``."""
    aligned = {key: value for key, value in stored.items() if key not in MAY_DIFFER}
    aligned |= {key: arguments[key] for key in MAY_DIFFER if key in arguments}
    if "norm_options" in arguments:
        own = {name: arguments["norm_options"].get(name) for name in _OPTIONS_THAT_MAY_DIFFER}
        options = {**stored.get("norm_options", {}), **own}
        aligned["norm_options"] = {name: value for name, value in options.items() if value is not None}
    try:
        there = make(aligned, AbstractRngs())
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The network of {directory} cannot be made: {error}") from error
    here = make(arguments, AbstractRngs())
    shapes, expected = variables(there), variables(here)
    same_shapes = shapes.keys() == expected.keys() and all(shapes[key].shape == expected[key].shape for key in shapes)
    if model_to_dicts(there)[0] == model_to_dicts(here)[0] and same_shapes:
        return there
    differences = []
    for key, parameter in inspect.signature(create_model).parameters.items():
        values = stored.get(key, parameter.default), arguments.get(key, parameter.default)
        # None stands for the network's default.
        if key not in MAY_DIFFER and None not in values and _plain(values[0]) != _plain(values[1]):
            differences.append(f"{key} is {values[0]!r} there and {values[1]!r} here")
    hint = " (For other classes, set config.init_new_head=True.)" if "num_classes" in " ".join(differences) else ""
    raise ConfigError(
        f"The network in {directory} is not that of config.model and the data set: {'; '.join(differences)}. Set the "
        f"fields of config.model to what is there.{hint}"
    )


def _plain(value: Any) -> Any:
    """JSON has lists for tuples."""
    return list(value) if isinstance(value, tuple) else value
