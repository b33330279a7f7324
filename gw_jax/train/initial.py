"""Where a run starts that does not start from nothing: with an imported model, or with a run that PyTorch began."""

import dataclasses
import inspect
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gw_jax.convert.layout import by_path, map_by_path, variables
from gw_jax.convert.pretrained import MODEL_FILE, TRAINING_FILE, read_arrays, read_config
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models import create_model
from gw_jax.nn.initializers import NoKeys
from gw_jax.train.setup import Experiment
from gw_jax.train.state import TrainState, make_model, split_model

# What may differ between the imported network and the run's: neither changes what the network computes in evaluation.
_FREE_ARGUMENTS = ("batch_norm_options", "dropout", "zero_init_residual")


def initial_state(experiment: Experiment) -> TrainState:
    """The state in which a new run starts: that of ``config.resume_from`` or ``config.init_from``, else random.

    Raises:
        CheckpointError: the directory is damaged, or has no training state although ``resume_from`` wants it.
        ConfigError: its network is not that of ``config.model``, or the run it comes from has done all epochs.
    """
    config = experiment.config
    given = config.resume_from or config.init_from
    if given is None:
        return experiment.state
    directory = pathlib.Path(given).expanduser()
    description = read_config(directory)
    theirs = description["model"]
    ours = experiment.plain_model_arguments
    if config.init_new_head:
        ours = {**ours, "num_classes": theirs.get("num_classes", ours["num_classes"])}
    shapes = _check_same_network(ours, theirs, directory, config.dtype)
    arrays = read_arrays(directory, MODEL_FILE, shapes)

    def take(path: str, leaf: Any) -> Any:
        if config.init_new_head and path.startswith("head."):
            return leaf
        # Where every group of examples has running statistics of its own, all start alike.
        return _place(np.broadcast_to(arrays[path].astype(leaf.dtype), leaf.shape), leaf)

    old = experiment.state
    params, batch_stats = map_by_path(take, old.params), map_by_path(take, old.batch_stats)
    # Arrays of their own, once more because of the memory.
    ema = None if old.ema is None else jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    state = dataclasses.replace(old, params=params, batch_stats=batch_stats, ema=ema)
    if config.resume_from is None:
        return state
    return _with_training_state(experiment, state, directory, description.get("training"))


def _with_training_state(
    experiment: Experiment, state: TrainState, directory: pathlib.Path, training: dict[str, Any] | None
) -> TrainState:
    if training is None:
        raise CheckpointError(
            f"{directory} holds a model without a training state (it came from a bare state dict). Use config.init_from to "
            "start with its weights, or convert the training dict (checkpoint.pth)."
        )
    epochs = training["epochs"]
    if epochs >= experiment.config.num_epochs:
        raise ConfigError(
            f"The run in {directory} has done {epochs} epochs, and config.num_epochs={experiment.config.num_epochs} leaves "
            "none to do. Raise config.num_epochs, or use config.init_from to start anew with its weights."
        )
    step = epochs * experiment.steps_per_epoch
    count = _place(np.asarray(step, np.int32), state.step)
    opt_state = optax.tree.set(state.opt_state, count=count)
    if (directory / TRAINING_FILE).exists() and experiment.config.optimizer.momentum:
        momentum = read_arrays(directory, TRAINING_FILE, by_path(state.params))

        def velocity(path: str, leaf: Any) -> Any:
            return _place(momentum[path].astype(leaf.dtype), leaf)

        opt_state = optax.tree.set(opt_state, trace=map_by_path(velocity, state.params))
    return dataclasses.replace(state, step=_place(np.asarray(step, np.int32), state.step), opt_state=opt_state)


def _check_same_network(
    ours: dict[str, Any], theirs: dict[str, Any], directory: pathlib.Path, dtype: str
) -> dict[str, Any]:
    """The shapes of the network of ``theirs``, by path, which must be that of ``ours``."""
    aligned = {key: value for key, value in theirs.items() if key not in _FREE_ARGUMENTS}
    aligned |= {key: ours[key] for key in _FREE_ARGUMENTS if key in ours}
    if "group_size" in ours.get("norm_options", {}):
        aligned["norm_options"] = {**theirs.get("norm_options", {}), "group_size": ours["norm_options"]["group_size"]}
    try:
        there = make_model(aligned, dtype=dtype, rngs=NoKeys())
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The network of {directory} cannot be made: {error}") from error
    here = make_model(ours, dtype=dtype, rngs=NoKeys())
    shapes, expected = variables(there), variables(here)
    same_shapes = shapes.keys() == expected.keys() and all(shapes[key].shape == expected[key].shape for key in shapes)
    if split_model(there)[0] == split_model(here)[0] and same_shapes:
        return shapes
    differences = []
    for key, parameter in inspect.signature(create_model).parameters.items():
        values = theirs.get(key, parameter.default), ours.get(key, parameter.default)
        # None stands for whatever the network usually has.
        if key not in _FREE_ARGUMENTS and None not in values and _plain(values[0]) != _plain(values[1]):
            differences.append(f"{key} is {values[0]!r} there and {values[1]!r} here")
    hint = " (For other classes, set config.init_new_head=True.)" if "num_classes" in " ".join(differences) else ""
    raise ConfigError(
        f"The network in {directory} is not that of config.model and the data set: {'; '.join(differences)}. Set the "
        f"fields of config.model to what is there.{hint}"
    )


def _plain(value: Any) -> Any:
    """JSON has lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def _place(array: np.ndarray, like: jax.Array) -> jax.Array:
    """``array`` as ``like`` lies on the devices: a copy, because the training step takes over the memory of its state."""
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: jnp.array(array[index]))
