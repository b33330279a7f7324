"""Layer normalisation over the channels of every position."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.calling import finish, prepare
from gw_jax.nn.initializers import constant
from gw_jax.ops.checks import accumulation_dtype, require_epsilon, require_integer


class LayerNorm(nnx.Module):
    """Normalises the channels of every position of every sample to zero mean and unit variance.

    At one position, over its ``c`` channels::

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    Training equals evaluation. For inputs without spatial axes it is the reference's ``LN``; with them, that one
    normalised along the width of the image, by mistake. It differs from ``flax.nnx.LayerNorm`` in PyTorch's epsilon of
    1e-5, in masks, and in subtracting the mean before it squares.

    Args:
        num_features: channels ``c`` of the input.
        epsilon: added to the variance.
        use_scale: whether there is a ``scale`` ``[c]``, initially ones.
        use_bias: whether there is a ``bias`` ``[c]``, initially zeros.
        dtype: type of the output; None for the input's. Statistics are in float32 (float64 for float64 input).
        param_dtype: type of ``scale`` and ``bias``.
        rngs: taken as by every NNX layer; nothing random is drawn.

    Raises:
        ValueError: ``epsilon`` is negative.

    Source: Ba et al., Layer Normalization (arXiv 1607.06450); ``torch.nn.LayerNorm``.
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-5,
        use_scale: bool = True,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        require_epsilon(epsilon)
        self.num_features = require_integer("num_features", num_features, 1)
        self.epsilon = epsilon
        self.dtype = dtype
        self.scale = nnx.Param(constant(rngs, 1, (num_features,), param_dtype)) if use_scale else None
        self.bias = nnx.Param(constant(rngs, 0, (num_features,), param_dtype)) if use_bias else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Normalises ``x`` ``[n, *spatial, c]``; where ``mask`` ``[n, *spatial]`` is false the output is zero.

        ``relu``: whether ``max(., 0)`` is taken of the output.

        Raises:
            TypeError: ``x`` is not floating point.
            ValueError: ``x`` or ``mask`` has another shape.
        """
        given, (x, mask) = x, prepare(self, x, mask)
        values = x.astype(accumulation_dtype(x.dtype))
        if mask is not None:
            # Before the variance, not after: the derivative at a masked NaN would be NaN.
            values = jnp.where(mask.astype(bool)[..., None], values, 0)
        centred = values - values.mean(-1, keepdims=True)
        var = (centred * centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(var + self.epsilon)
        return finish(self, y, given, mask, relu)
