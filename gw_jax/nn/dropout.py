"""Dropout whose randomness is an argument, so that a network's state holds parameters and statistics only."""

import jax
import jax.numpy as jnp
from flax import nnx


class Dropout(nnx.Module):
    """In training, sets each value to zero with probability ``rate`` and divides the others by ``1 - rate``.

    In evaluation it returns its input. Unlike ``flax.nnx.Dropout`` it keeps no random state: the key is an argument.

    Args:
        rate: probability, 0 to below 1.
        deterministic: whether the layer starts in evaluation; ``model.train()`` and ``model.eval()`` switch it.

    Raises:
        ValueError: ``rate`` is out of range.

    Source: Srivastava et al., Dropout (JMLR 2014).
    """

    def __init__(self, rate: float, *, deterministic: bool = False):
        if not 0 <= rate < 1:
            raise ValueError(f"dropout={rate}; it is a probability, 0 to below 1.")
        self.rate = rate
        self.deterministic = deterministic

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``flax.nnx.view`` calls to make a training or an evaluation view of a model."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Drops values of ``x``.

        Raises:
            ValueError: in training with a ``rate`` above 0, without a ``key``.
        """
        if self.deterministic or self.rate == 0:
            return x
        if key is None:
            raise ValueError(
                f"A network with dropout={self.rate} needs model(images, dropout_key=jax.random.key(...)) in training. "
                "Call model.eval() first if this is evaluation."
            )
        keep = jax.random.bernoulli(key, 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0)
