"""Assembles a run: task, network, optimiser and steps, with every check that needs more than the configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gw_jax.errors import ConfigError
from gw_jax.train.config import TrainConfig
from gw_jax.train.kernel_checks import KernelChecks
from gw_jax.train.mesh import batch_sharding, make_mesh
from gw_jax.train.optimizer import check_patterns, make_optimizer
from gw_jax.train.schedule import Length, check_schedule, make_schedule
from gw_jax.train.state import TrainState, create_state
from gw_jax.train.step import EvalStep, TrainStep, make_eval_step, make_train_step
from gw_jax.train.task import Batch, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run that is ready to start: what the loop needs, with an initial state.

    Attributes:
        config: the configuration.
        task: the task.
        mesh: the devices.
        graphdef: the static part of the network.
        state: the initial state, on the devices.
        train_step: the training step, not yet compiled.
        eval_step: the evaluation step, likewise.
        kernel_checks: the checks of kernels before they are compiled.
        schedule: the learning rate by step.
        length: the number of steps, and when to evaluate and save.
    """

    config: TrainConfig
    task: Task
    mesh: Mesh
    graphdef: nnx.GraphDef
    state: TrainState
    train_step: TrainStep
    eval_step: EvalStep
    kernel_checks: KernelChecks
    schedule: optax.Schedule
    length: Length

    def shard_batch(self, batch: Batch) -> Batch:
        """Places this process's shard of a batch on the devices."""
        sharding = batch_sharding(self.mesh)
        return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


def build_experiment(config: TrainConfig, devices: list[jax.Device] | None = None, *, training: bool = True) -> Experiment:
    """Opens the task of ``config`` and initialises its network on all devices, or on ``devices``.

    Args:
        config: a valid configuration.
        devices: the devices; None for all.
        training: whether training data are needed, and must fit the devices.

    Raises:
        ConfigError: a field that does not fit devices, data or network.
        DataError: the data are missing or not prepared.
    """
    if config.dtype == "float64" and jnp.zeros((), float).dtype != jnp.float64:
        raise ConfigError("config.dtype=float64 needs 64-bit types; set the environment variable JAX_ENABLE_X64=1.")
    mesh = make_mesh(devices)
    task = config.make_task()
    task.check(mesh.size, training=training)
    length = Length.of(config, max(task.steps_per_epoch, 1))
    if training:
        if task.batch_size % config.accumulate_steps:
            raise ConfigError(
                f"config.accumulate_steps={config.accumulate_steps} does not divide the batch of {task.batch_size} "
                f"{task.example_name}; choose a divisor."
            )
        check_schedule(config.schedule, length)
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, length.steps_per_epoch, length.total_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    try:
        graphdef, state = create_state(task.make_model, config.seed, optimizer, mesh, with_ema=config.ema_decay > 0)
    except ValueError as error:
        raise ConfigError(f"The network of config.model cannot be made: {error}") from error
    check_patterns(config.optimizer, state.params)
    return Experiment(
        config=config,
        task=task,
        mesh=mesh,
        graphdef=graphdef,
        state=state,
        train_step=make_train_step(task, graphdef, optimizer, config, mesh),
        eval_step=make_eval_step(task, graphdef, mesh),
        kernel_checks=KernelChecks(mesh, enabled=config.check_kernels),
        schedule=schedule,
        length=length,
    )
