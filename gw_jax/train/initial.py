"""Where a run starts that does not start from nothing: with an imported model, or with a run that PyTorch began."""

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
from gw_jax.nn.initial import NoKeys
from gw_jax.train.setup import Experiment
from gw_jax.train.state import TrainState, make_model, replicated, split_model

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
    _check_same_network(experiment, directory, description["model"])
    arrays = read_arrays(directory, MODEL_FILE, by_path(experiment.state.params) | by_path(experiment.state.batch_stats))
    params = _fill(experiment, experiment.state.params, arrays)
    state = TrainState(
        experiment.state.step, params, _fill(experiment, experiment.state.batch_stats, arrays), experiment.state.opt_state
    )
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
    opt_state = optax.tree.set(state.opt_state, count=_place(experiment, np.asarray(step, np.int32)))
    if (directory / TRAINING_FILE).exists() and experiment.config.optimizer.momentum:
        momentum = read_arrays(directory, TRAINING_FILE, by_path(state.params))
        opt_state = optax.tree.set(opt_state, trace=_fill(experiment, state.params, momentum))
    return TrainState(_place(experiment, np.asarray(step, np.int32)), state.params, state.batch_stats, opt_state)


def _check_same_network(experiment: Experiment, directory: pathlib.Path, theirs: dict[str, Any]) -> None:
    ours = experiment.model_arguments
    dtype = experiment.config.dtype
    aligned = {key: value for key, value in theirs.items() if key not in _FREE_ARGUMENTS}
    aligned |= {key: ours[key] for key in _FREE_ARGUMENTS if key in ours}
    if "group_size" in ours.get("norm_options", {}):
        aligned["norm_options"] = {**theirs.get("norm_options", {}), "group_size": ours["norm_options"]["group_size"]}
    try:
        model = make_model(aligned, dtype=dtype, rngs=NoKeys())
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The network of {directory} cannot be made: {error}") from error
    graphdef, _, _ = split_model(model)
    here = by_path(experiment.state.params) | by_path(experiment.state.batch_stats)
    there = variables(model)
    same_shapes = here.keys() == there.keys() and all(here[key].shape == there[key].shape for key in here)
    if graphdef == experiment.graphdef and same_shapes:
        return
    differences = []
    for key, parameter in inspect.signature(create_model).parameters.items():
        values = theirs.get(key, parameter.default), ours.get(key, parameter.default)
        # None stands for whatever the network usually has.
        if key not in _FREE_ARGUMENTS and None not in values and _plain(values[0]) != _plain(values[1]):
            differences.append(f"{key} is {values[0]!r} there and {values[1]!r} here")
    raise ConfigError(
        f"The network in {directory} is not that of config.model and the data set: {'; '.join(differences)}. Set the "
        "fields of config.model to what is there."
    )


def _plain(value: Any) -> Any:
    """JSON has lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def _fill(experiment: Experiment, tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    return map_by_path(lambda path, leaf: _place(experiment, arrays[path].astype(leaf.dtype)), tree)


def _place(experiment: Experiment, array: np.ndarray) -> jax.Array:
    # A copy of JAX's own, because the training step takes over the memory of its state.
    return jax.device_put(jnp.array(array), replicated(experiment.mesh))
