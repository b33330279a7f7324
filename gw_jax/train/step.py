"""The training step and the evaluation step of any task: pure functions of state and batch, compiled for a mesh.

They are ``jax.jit`` over plain nested dicts, not ``nnx.jit``: that costs less to dispatch, and checkpoints do not depend on
Flax's internals. Gradients are all-reduced in the type in which they are computed, bfloat16 on accelerators.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gw_jax.ops.kernels.placement import batch_sharded_over
from gw_jax.train.config import TrainConfig
from gw_jax.train.mesh import DATA_AXIS, batch_sharding, replicated, state_shardings
from gw_jax.train.optimizer import matching
from gw_jax.train.state import TrainState, model_to_dicts, update_ema
from gw_jax.train.stop import STOP_FIELD
from gw_jax.train.task import Batch, EvaluatesShards, Mean, Task

# Parts of an accumulated batch have the keys 5, 6, ... of the step, so that runs keep their random numbers across versions.
_FIRST_PART_KEY = 5


class TrainStep(Protocol):
    """A jitted training step."""

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        """The state after the step, and the metrics of the batch before it; the old state's memory is reused."""
        ...

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """The program for these shapes, to be compiled."""
        ...


class EvalStep(Protocol):
    """A jitted evaluation step."""

    def __call__(self, params: Any, batch_stats: Any, batch: Batch) -> dict[str, Any]:
        """``{"outputs": task.predict(...), "stop": None}``, replicated, or sharded for :class:`EvaluatesShards`."""
        ...

    def lower(self, params: Any, batch_stats: Any, batch: Batch) -> jax.stages.Lowered:
        """The program for these shapes, to be compiled."""
        ...


def make_train_step(
    task: Task, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, config: TrainConfig, mesh: Mesh
) -> TrainStep:
    """Compiles ``(state, batch) -> (state, metrics)``; the old state's memory is reused.

    Metrics are pairs (total, count) of this batch before the update: ``loss``, those of :meth:`Task.loss`, and
    ``grad_norm``, the norm of the gradient of all trained parameters. Beside them, ``stop`` is the largest of the batch's,
    if it has that field. Randomness depends on seed and step only.

    Args:
        task: gives the loss.
        graphdef: the static part of its network.
        optimizer: updates the parameters.
        config: seed, accumulation, moving average, frozen parameters.
        mesh: the devices, over whose axis "data" batches are sharded.
    """
    parts = config.accumulate_steps

    def loss_of(params: Any, batch_stats: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, batch_stats)
        model.train()
        loss, metrics = task.loss(model, batch, key)
        _, _, new_stats = model_to_dicts(model)
        return loss, (metrics, new_stats)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def part(params: Any, batch_stats: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any, dict[str, Mean]]:
        (loss, (metrics, new_stats)), grads = gradient(params, batch_stats, batch, key)
        return grads, new_stats, {"loss": (loss, jnp.ones((), loss.dtype)), **metrics}

    def whole(state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, Any, dict[str, Mean]]:
        """Gradient, new batch statistics and metrics of the whole batch."""
        if parts == 1:
            return part(state.params, state.batch_stats, batch, key)

        # Part i is examples i, i + parts, ...: every device holds its shard of every part, and nothing moves between them.
        def cut(array: jax.Array) -> jax.Array:
            return array.reshape(array.shape[0] // parts, parts, *array.shape[1:])

        batch = jax.tree.map(cut, batch)

        def select(index: Any) -> Batch:
            return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 1, keepdims=False), batch)

        def add(carry: Any, index: jax.Array) -> tuple[Any, None]:
            batch_stats, total = carry
            part_key = jax.random.fold_in(key, index + _FIRST_PART_KEY)
            grads, batch_stats, metrics = part(state.params, batch_stats, select(index), part_key)
            return (batch_stats, jax.tree.map(jnp.add, total, (grads, metrics))), None

        shapes = jax.eval_shape(part, state.params, state.batch_stats, select(0), key)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (shapes[0], shapes[2]))
        (batch_stats, total), _ = jax.lax.scan(add, (state.batch_stats, zeros), jnp.arange(parts))
        grads, metrics = jax.tree.map(lambda a: a / parts, total)
        return grads, batch_stats, metrics

    @batch_sharded_over(mesh, DATA_AXIS)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        batch = dict(batch)
        stop = batch.pop(STOP_FIELD, None)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        grads, batch_stats, means = whole(state, batch, key)
        if config.optimizer.frozen:
            # Nothing then uses the gradients of frozen parameters, and the compiler removes their computation.
            frozen = matching(state.params, config.optimizer.frozen)
            grads = jax.tree.map(lambda f, g: jnp.zeros_like(g) if f else g, frozen, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        metrics: dict[str, Any] = {**means, "grad_norm": (norm, jnp.ones((), norm.dtype))}
        if stop is not None:
            metrics[STOP_FIELD] = stop.max()
        ema = update_ema(state, params, batch_stats, config.ema_decay)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return jax.lax.with_sharding_constraint(new, state_shardings(mesh, new)), metrics

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(task: Task, graphdef: nnx.GraphDef, mesh: Mesh) -> EvalStep:
    """Compiles ``(params, batch_stats, batch) -> {"outputs": task.predict(model, batch), "stop": ...}``.

    The outputs are replicated on all devices; those of a task that :class:`EvaluatesShards` stay sharded like the batch.
    ``stop`` is the largest of the batch's, or None if it has no such field.
    """

    @batch_sharded_over(mesh, DATA_AXIS)
    def eval_step(params: Any, batch_stats: Any, batch: Batch) -> dict[str, Any]:
        batch = dict(batch)
        stop = batch.pop(STOP_FIELD, None)
        model = nnx.merge(graphdef, params, batch_stats)
        model.eval()
        return {"outputs": task.predict(model, batch), STOP_FIELD: None if stop is None else stop.max()}

    everywhere = replicated(mesh)
    outputs = batch_sharding(mesh) if isinstance(task, EvaluatesShards) else everywhere
    return jax.jit(eval_step, out_shardings={"outputs": outputs, STOP_FIELD: everywhere})
