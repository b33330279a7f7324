"""Batch normalisation whose statistics, scale and bias are constants: the norm of fine-tuned detectors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.calling import output_dtype, prepare
from gw_jax.nn.initializers import constant
from gw_jax.ops.checks import accumulation_dtype, require_epsilon, require_integer
from gw_jax.ops.sharding import replicate, reshard_like


class FrozenBatchNorm(nnx.Module):
    """Multiplies every channel by a constant and adds one, as a BatchNorm does whose four arrays never change.

    In training and evaluation::

        y = x * s + (bias - mean * s),   s = scale / sqrt(var + epsilon)

    ``scale``, ``bias``, ``mean`` and ``var`` ``[c]`` are ``nnx.BatchStat``: no optimiser sees them, and no call updates
    them. They are read from a trained network; the initial values make the layer the identity.

    Warning:
        There is no epsilon by default, as in maskrcnn-benchmark, though networks are trained with 1e-5. A channel whose
        variance is near 0 then becomes huge or NaN. Give such a network the epsilon that it was trained with.

    Args:
        num_features: channels ``c`` of the input.
        epsilon: added to the variance.
        dtype: type of the output; None for the input's. It is computed in float32 (float64 for float64 input).
        param_dtype: type of the four arrays, at least float32.
        rngs: an argument of every NNX layer; nothing random is drawn.

    Raises:
        ValueError: ``num_features`` is no positive integer, or ``epsilon`` is negative or not finite.

    Source: the reference's ``FrozenBatchNorm2d`` (maskrcnn-benchmark).

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from gw_jax.nn import FrozenBatchNorm
        >>> norm = FrozenBatchNorm(2, rngs=nnx.Rngs(0))
        >>> norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0]), jnp.array([4.0, 1.0])
        >>> norm(jnp.array([[5.0, 5.0]])).tolist()
        [[2.0, 3.0]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_features = require_integer("num_features", num_features, 1)
        self.epsilon = require_epsilon(epsilon)
        self.dtype = dtype
        array_dtype = accumulation_dtype(param_dtype)
        self.scale = nnx.BatchStat(constant(rngs, 1, (num_features,), array_dtype))
        self.bias = nnx.BatchStat(constant(rngs, 0, (num_features,), array_dtype))
        self.mean = nnx.BatchStat(constant(rngs, 0, (num_features,), array_dtype))
        self.var = nnx.BatchStat(constant(rngs, 1, (num_features,), array_dtype))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Hook of ``flax.nnx.view``: training equals evaluation, so there is nothing to switch."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Normalises ``x`` ``[n, *spatial, c]``; ``mask`` ``[n, *spatial]`` is true where a position counts.

        Masked positions come out as zero. ``relu``: whether ``max(., 0)`` is applied to the output.

        Raises:
            TypeError: ``x`` is not floating point.
            ValueError: ``x`` or ``mask`` has another shape.
        """
        given, (x, mask) = x, prepare(self, x, mask)
        values = x.astype(accumulation_dtype(x.dtype))
        scale, bias, mean, var = (replicate(v[...]) for v in (self.scale, self.bias, self.mean, self.var))
        factor = scale / jnp.sqrt(var + self.epsilon)
        factor, offset = (
            vector.astype(values.dtype).reshape((1,) * (x.ndim - 1) + (-1,)) for vector in (factor, bias - mean * factor)
        )
        y = values * factor + offset
        if mask is not None:
            y = jnp.where(mask.astype(bool)[..., None], y, 0)
        y = y.astype(output_dtype(self, x))
        return reshard_like(jax.nn.relu(y) if relu else y, given)
