"""Training of several runs of one network at once: the one training loop of all experiments.

The runs are stacked along a leading axis and mapped by ``jax.vmap``. They differ in their seed (initial parameters and
order of the examples) and in their learning rate. Steps are a ``jax.lax.scan``: one compilation per network and batch size.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.digits import Digits

# The reference's schedule, 30 epochs of 0.1 and 20 of 0.02, as shares of a run.
DECAY_AFTER = 0.6
DECAY_FACTOR = 0.2
EVALUATION_BATCH = 500

MakeModel = Callable[[nnx.Rngs], nnx.Module]
# Parameters and running statistics, with a leading axis of runs.
States = tuple[Any, Any]


class Outcome(NamedTuple):
    """What ``r`` runs end with, on the ``n`` digits ``members``.

    correct: ``[r, n]``, whether each digit is classified correctly in evaluation mode.
    losses: ``[r, n]``, the cross-entropy of each digit in evaluation mode.
    diverged: ``[r]``, whether a loss in training or a number of the final state is not finite.
    """

    members: np.ndarray
    correct: np.ndarray
    losses: np.ndarray
    diverged: np.ndarray

    def accuracy(self, members: np.ndarray) -> np.ndarray:
        """The accuracy ``[r]`` on the digits ``members``, a part of those evaluated."""
        return self.correct[:, np.isin(self.members, members)].mean(1)

    def loss(self, members: np.ndarray) -> np.ndarray:
        """The mean cross-entropy ``[r]`` on the digits ``members``, a part of those evaluated."""
        return self.losses[:, np.isin(self.members, members)].mean(1)


def batches(members: np.ndarray, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """Indices ``[steps, batch_size]`` of training digits: epochs in random order, incomplete batches dropped."""
    rng = np.random.default_rng(seed)
    per_epoch = len(members) // batch_size
    epochs = [rng.permutation(members)[: per_epoch * batch_size] for _ in range(-(-steps // per_epoch))]
    return np.concatenate(epochs).reshape(-1, batch_size)[:steps].astype(np.int32)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy ``[n]`` of logits ``[n, classes]``."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def finite(states: States) -> np.ndarray:
    """Whether all numbers of each run's state are finite, ``[r]``."""
    leaves = [np.asarray(jnp.isfinite(leaf).all(tuple(range(1, leaf.ndim)))) for leaf in jax.tree.leaves(states)]
    return np.all(leaves, axis=0)


class Runs:
    """Trains and evaluates runs of the network that ``make_model`` makes; compiles once for each shape.

    Args:
        make_model: makes the network from random number generators.
        digits: the data.
    """

    def __init__(self, make_model: MakeModel, digits: Digits):
        self.make_model = make_model
        self.images, self.labels = jnp.asarray(digits.images), jnp.asarray(digits.labels)
        model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
        model.train()
        self.training = nnx.graphdef(model)
        model.eval()
        self.evaluation = nnx.graphdef(model)

    def initial(self, seeds: Sequence[int]) -> States:
        """The state of a new network for each seed."""
        return self._initial(jax.vmap(jax.random.key)(jnp.asarray(seeds)))

    @functools.partial(jax.jit, static_argnums=0)
    def _initial(self, keys: jax.Array) -> States:
        def state(key: jax.Array) -> States:
            _, params, statistics = nnx.split(self.make_model(nnx.Rngs(key)), nnx.Param, ...)
            return nnx.as_pure(params), nnx.as_pure(statistics)

        return jax.vmap(state)(keys)

    def model(self, states: States, run: int) -> nnx.Module:
        """The network of one run, in evaluation mode."""
        return nnx.merge(self.evaluation, *jax.tree.map(lambda x: x[run], states))

    def advance(self, states: States, indices: np.ndarray, rates: np.ndarray) -> tuple[States, jax.Array]:
        """Takes the steps of ``indices`` ``[steps, r, batch]`` at the learning rates ``rates`` ``[steps, r]``.

        Returns the new states and the losses ``[steps, r]``.
        """
        return self._advance(states, self.images, self.labels, indices, rates)

    @functools.partial(jax.jit, static_argnums=0)
    def _advance(
        self, states: States, images: jax.Array, labels: jax.Array, indices: jax.Array, rates: jax.Array
    ) -> tuple[States, jax.Array]:
        def loss(params: Any, statistics: Any, members: jax.Array) -> tuple[jax.Array, Any]:
            model = nnx.merge(self.training, params, statistics)
            value = cross_entropy(model(images[members]), labels[members]).mean()
            return value, nnx.as_pure(nnx.state(model, nnx.BatchStat))

        def step(state: States, inputs: tuple[jax.Array, jax.Array]) -> tuple[States, jax.Array]:
            (params, statistics), (members, rate) = state, inputs
            (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params, statistics, members)
            return (jax.tree.map(lambda p, g: p - rate * g, params, gradients), statistics), value

        def run(state: States, indices: jax.Array, rates: jax.Array) -> tuple[States, jax.Array]:
            return jax.lax.scan(step, state, (indices, rates))

        states, losses = jax.vmap(run)(states, indices.swapaxes(0, 1), rates.swapaxes(0, 1))
        return states, losses.swapaxes(0, 1)

    def evaluate(self, states: States, losses: jax.Array, members: np.ndarray) -> Outcome:
        """Evaluates ``states`` on the digits ``members``, a multiple of 500; ``losses`` ``[steps, r]`` are of training."""
        diverged = ~(np.isfinite(losses).all(0) & finite(states))
        correct, loss = self._evaluate(states, self.images, self.labels, members)
        return Outcome(members, np.asarray(correct), np.asarray(loss), diverged)

    @functools.partial(jax.jit, static_argnums=0)
    def _evaluate(
        self, states: States, images: jax.Array, labels: jax.Array, members: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def run(params: Any, statistics: Any) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(self.evaluation, params, statistics)

            def batch(members: jax.Array) -> tuple[jax.Array, jax.Array]:
                logits, truth = model(images[members]), labels[members]
                return logits.argmax(1) == truth, cross_entropy(logits, truth)

            correct, loss = jax.lax.map(batch, members.reshape(-1, EVALUATION_BATCH))
            return correct.reshape(-1), loss.reshape(-1)

        return jax.vmap(run)(*states)
