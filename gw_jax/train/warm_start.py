"""Warm starts: a run from the weights of a model, or from a run that PyTorch began."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.train.experiment import Experiment
from gw_jax.train.state import TrainState
from gw_jax.train.task import Weights
from gw_jax.tree import map_by_path


def initial_state(experiment: Experiment) -> TrainState:
    """The state in which a new run starts: that of ``config.resume_from`` or ``config.init_from``, else random.

    Raises:
        CheckpointError: the directory is damaged, or has no training state although ``resume_from`` needs it.
        ConfigError: its network or its optimiser is not that of the configuration, or its run has done all steps.
    """
    config, old = experiment.config, experiment.state
    given = config.resume_from or config.init_from
    if given is None:
        return old
    directory = pathlib.Path(given).expanduser()
    weights = experiment.task.read_weights(directory)

    def assign(path: str, leaf: Any) -> Any:
        if path not in weights.arrays:
            return leaf
        # Where every group of examples has running statistics of its own, all start alike.
        return _place(np.broadcast_to(weights.arrays[path].astype(leaf.dtype), leaf.shape), leaf)

    params, batch_stats = map_by_path(assign, old.params), map_by_path(assign, old.batch_stats)
    # Copies: the training step donates every array of the state.
    ema = None if old.ema is None else jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    state = dataclasses.replace(old, params=params, batch_stats=batch_stats, ema=ema)
    if config.resume_from is None:
        return state
    return _with_training_state(experiment, state, directory, weights)


def _with_training_state(
    experiment: Experiment, state: TrainState, directory: pathlib.Path, weights: Weights
) -> TrainState:
    config, length = experiment.config, experiment.length
    if weights.training is None:
        raise CheckpointError(
            f"{directory} holds a model without a training state (it came from a bare state dict). Use config.init_from to "
            "start with its weights, or convert the training dict (checkpoint.pth)."
        )
    epochs = weights.training["epochs"]
    step = epochs * length.steps_per_epoch
    if step >= length.total_steps:
        field = "num_epochs" if config.num_steps is None else "num_steps"
        given = f"config.{field}={getattr(config, field)}"
        raise ConfigError(
            f"The run in {directory} has done {epochs} epochs ({step} steps), and {given} leaves nothing to do. Raise it, "
            "or use config.init_from to start anew with its weights."
        )
    count = _place(np.asarray(step, np.int32), state.step)
    opt_state = optax.tree.set(state.opt_state, count=count)
    momentum = weights.momentum
    if momentum is not None and config.optimizer.momentum:
        if config.optimizer.name != "sgd":
            raise ConfigError(
                f"The momentum in {directory} is that of SGD, which config.optimizer.name={config.optimizer.name!r} cannot "
                "use: its own has another scale. Use config.init_from to start with the weights only."
            )

        def velocity(path: str, leaf: Any) -> Any:
            return _place(momentum[path].astype(leaf.dtype), leaf)

        opt_state = optax.tree.set(opt_state, trace=map_by_path(velocity, state.params))
    return dataclasses.replace(state, step=_place(np.asarray(step, np.int32), state.step), opt_state=opt_state)


def _place(array: np.ndarray, like: jax.Array) -> jax.Array:
    """``array`` with the sharding of ``like``: a copy, because the training step donates its state."""
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: jnp.array(array[index]))
