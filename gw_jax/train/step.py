"""The training step and the evaluation step: pure functions of state and batch, compiled for a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gw_jax.data.augment import normalise, random_flip, random_shift
from gw_jax.data.mix import mix, one_hot, random_erasing
from gw_jax.data.randaugment import rand_augment
from gw_jax.data.specs import DatasetSpec
from gw_jax.ops.kernels.placement import batch_sharded_over
from gw_jax.train.config import TrainConfig
from gw_jax.train.state import DATA_AXIS, TrainState, activation_dtype, place_state, replicated, split_model

Metrics = dict[str, jax.Array]
# (state, batch) -> (state, metrics) and (params, batch_stats, batch) -> sums, as jax.jit returns them.
TrainStep = Any
EvalStep = Any


def make_train_step(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, config: TrainConfig, spec: DatasetSpec, mesh: Mesh
) -> TrainStep:
    """Compiles ``(state, batch) -> (state, metrics)``; the old state's memory is reused.

    The loss is the mean cross-entropy over the global batch, of the mixed and smoothed targets where these are on. Metrics
    are the scalars ``loss``, ``top1`` and ``grad_norm``, of this batch before the update, and ``stop``, the largest of the
    batch's, if it has that field. Augmentation and dropout depend on seed and step only.
    """
    dtype = activation_dtype(config.dtype)
    augment, parts = config.augment, config.accumulate_steps

    def loss_and_logits(
        params: Any, batch_stats: Any, images: jax.Array, targets: jax.Array, dropout_key: jax.Array
    ) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, batch_stats)
        model.train()
        logits = model(images, dropout_key=dropout_key) if config.model.dropout else model(images)
        _, _, new_stats = split_model(model)
        if targets.ndim == 1:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        else:
            losses = optax.softmax_cross_entropy(logits, targets.astype(logits.dtype))
        return losses.mean(), (logits, new_stats)

    gradient = jax.value_and_grad(loss_and_logits, has_aux=True)

    def prepare(images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Augmented, normalised images, and labels ``[n]`` or targets ``[n, num_classes]``."""
        shift_key, flip_key = jax.random.split(key)
        images = random_shift(images, shift_key, config.data.shift)
        if config.data.flip:
            images = random_flip(images, flip_key)
        if augment.randaugment_layers:
            images = rand_augment(
                images,
                jax.random.fold_in(key, 2),
                num_layers=augment.randaugment_layers,
                magnitude=augment.randaugment_magnitude,
            )
        images = normalise(images, spec.mean, spec.std, dtype)
        if augment.random_erasing:
            images = random_erasing(images, jax.random.fold_in(key, 3), augment.random_erasing)
        if not (config.label_smoothing or augment.mixup or augment.cutmix):
            return images, labels
        targets = one_hot(labels, spec.num_classes, config.label_smoothing)
        return mix(images, targets, jax.random.fold_in(key, 4), mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix)

    def gradients(state: TrainState, batch: Any, key: jax.Array) -> tuple[Any, Any, Metrics]:
        """Gradient, new batch statistics, loss and top-1 of the whole batch."""

        def part(batch_stats: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[Any, Any, Metrics]:
            images, targets = prepare(images, labels, key)
            (loss, (logits, new_stats)), grads = gradient(
                state.params, batch_stats, images, targets, jax.random.fold_in(key, 1)
            )
            top1 = (jax.lax.argmax(logits, 1, jnp.int32) == labels).mean(dtype=jnp.float32)
            return grads, new_stats, {"loss": loss, "top1": top1}

        if parts == 1:
            return part(state.batch_stats, batch["image"], batch["label"], key)

        # Part i is examples i, i + parts, ...: every device has its share of every part, and nothing moves between devices.
        def cut(array: jax.Array) -> jax.Array:
            return array.reshape(array.shape[0] // parts, parts, *array.shape[1:])

        images, labels = cut(batch["image"]), cut(batch["label"])

        def add(carry: Any, index: jax.Array) -> tuple[Any, None]:
            batch_stats, total = carry
            image, label = (jax.lax.dynamic_index_in_dim(array, index, 1, keepdims=False) for array in (images, labels))
            grads, batch_stats, metrics = part(batch_stats, image, label, jax.random.fold_in(key, index + 5))
            return (batch_stats, jax.tree.map(jnp.add, total, (grads, metrics))), None

        shapes = jax.eval_shape(part, state.batch_stats, images[:, 0], labels[:, 0], key)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (shapes[0], shapes[2]))
        (batch_stats, total), _ = jax.lax.scan(add, (state.batch_stats, zeros), jnp.arange(parts))
        grads, metrics = jax.tree.map(lambda a: a / parts, total)
        return grads, batch_stats, metrics

    @batch_sharded_over(mesh, DATA_AXIS)
    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        grads, batch_stats, metrics = gradients(state, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        if "stop" in batch:
            metrics["stop"] = batch["stop"].max()
        ema = update_ema(state, params, batch_stats, config.ema_decay)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return jax.lax.with_sharding_constraint(new, place_state(mesh, new)), metrics

    return jax.jit(train_step, donate_argnums=0)


def update_ema(state: TrainState, params: Any, batch_stats: Any, decay: float) -> Any:
    """The averages after a step: ``ema <- d ema + (1 - d) new`` with ``d = min(decay, (1 + step) / (10 + step))``."""
    if state.ema is None:
        return None
    step = state.step.astype(jnp.float32)
    d = jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        keep = d.astype(new.dtype)
        return keep * old + (1 - keep) * new

    return jax.tree.map(average, state.ema, {"params": params, "batch_stats": batch_stats})


def make_eval_step(graphdef: nnx.GraphDef, config: TrainConfig, spec: DatasetSpec, mesh: Mesh) -> EvalStep:
    """Compiles ``(params, batch_stats, batch) -> sums`` over the examples that ``batch["mask"]`` counts.

    The sums are ``loss``, ``top1``, ``top5`` (top-k with all classes where there are fewer than 5) and ``count``. Where
    ``batch["labels"]`` says that several classes are right, any of them is a hit, and the loss is the mean over them.
    ``stop`` is the largest of the batch's, if it has that field.
    """
    dtype = activation_dtype(config.dtype)

    @batch_sharded_over(mesh, DATA_AXIS)
    def eval_step(params: Any, batch_stats: Any, batch: Any) -> Metrics:
        model = nnx.merge(graphdef, params, batch_stats)
        model.eval()
        logits = model(normalise(batch["image"], spec.mean, spec.std, dtype))
        labels, mask = batch["label"], batch["mask"]
        _, best = jax.lax.top_k(logits, min(5, spec.num_classes))
        if "labels" in batch:
            right = batch["labels"]
            targets = right / jnp.maximum(right.sum(-1, keepdims=True), 1).astype(logits.dtype)
            loss = optax.softmax_cross_entropy(logits, targets)
            hits = jnp.take_along_axis(right, best, -1)
        else:
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            hits = best == labels[:, None]
        sums = {
            # Selected, not multiplied: 0 times an infinite loss is not 0.
            "loss": jnp.where(mask, loss, 0).sum(),
            "top1": (hits[:, 0] & mask).sum(),
            "top5": (hits.any(-1) & mask).sum(),
            "count": mask.sum(),
        }
        return sums | ({"stop": batch["stop"].max()} if "stop" in batch else {})

    return jax.jit(eval_step, out_shardings=replicated(mesh))
