"""The training step and the evaluation step: pure functions of state and batch, compiled for a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gw_jax.data.augment import normalise, random_flip, random_shift
from gw_jax.data.specs import DatasetSpec
from gw_jax.train.config import TrainConfig
from gw_jax.train.state import TrainState, replicated, split_batch, split_model

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Any, Any], Metrics]


def make_train_step(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, config: TrainConfig, spec: DatasetSpec, mesh: Mesh
) -> TrainStep:
    """Compiles ``(state, batch) -> (state, metrics)``; the old state's memory is reused.

    The loss is the mean cross-entropy over the global batch. Metrics are the scalars ``loss``, ``top1`` and
    ``grad_norm``, of this batch before the update. Augmentation and dropout depend on seed and step only.
    """

    def loss_and_logits(
        params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array, dropout_key: jax.Array
    ) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, batch_stats)
        model.train()
        logits = model(images, dropout_key=dropout_key) if config.model.dropout else model(images)
        _, _, new_stats = split_model(model)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, new_stats)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        shift_key, flip_key = jax.random.split(key)
        images = random_shift(batch["image"], shift_key, config.data.shift)
        if config.data.flip:
            images = random_flip(images, flip_key)
        images = normalise(images, spec.mean, spec.std, config.dtype)
        gradient = jax.value_and_grad(loss_and_logits, has_aux=True)
        (loss, (logits, batch_stats)), grads = gradient(
            state.params, state.batch_stats, images, batch["label"], jax.random.fold_in(key, 1)
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "top1": (jax.lax.argmax(logits, 1, jnp.int32) == batch["label"]).mean(dtype=jnp.float32),
            "grad_norm": optax.tree.norm(grads),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
    )


def make_eval_step(graphdef: nnx.GraphDef, config: TrainConfig, spec: DatasetSpec, mesh: Mesh) -> EvalStep:
    """Compiles ``(params, batch_stats, batch) -> sums`` over the examples that ``batch["mask"]`` counts.

    The sums are ``loss``, ``top1``, ``top5`` (top-k with all classes where there are fewer than 5) and ``count``.
    """

    def eval_step(params: Any, batch_stats: Any, batch: Any) -> Metrics:
        model = nnx.merge(graphdef, params, batch_stats)
        model.eval()
        logits = model(normalise(batch["image"], spec.mean, spec.std, config.dtype))
        labels, mask = batch["label"], batch["mask"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        _, best = jax.lax.top_k(logits, min(5, spec.num_classes))
        hits = best == labels[:, None]
        return {
            # Selected, not multiplied: 0 times an infinite loss is not 0.
            "loss": jnp.where(mask, loss, 0).sum(),
            "top1": (hits[:, 0] & mask).sum(),
            "top5": (hits.any(-1) & mask).sum(),
            "count": mask.sum(),
        }

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
    )
