"""Flax's group normalisation with the defaults and the call of this package's layers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.group_whitening import require_num_features
from gw_jax.ops.numerics import require_floating


class GroupNorm(nnx.GroupNorm):
    """``flax.nnx.GroupNorm`` with PyTorch's numbers: epsilon 1e-5, and the variance from centred values.

    For one sample and one group of consecutive channels, over the group's channels and all positions::

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    Args:
        num_features: channels ``c`` of the input.
        num_groups: groups the channels are cut into; must divide ``num_features``. It is not clamped.
        epsilon: added to the variance.
        use_scale: whether there is a ``scale`` ``[c]``, initially ones.
        use_bias: whether there is a ``bias`` ``[c]``, initially zeros.
        dtype: type of the output; None for the input's.
        param_dtype: type of ``scale`` and ``bias``.
        rngs: the generators of the parameters.

    Raises:
        ValueError: ``num_groups`` does not divide ``num_features``.

    Source: Wu and He, Group Normalization (ECCV 2018); ``torch.nn.GroupNorm``.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int = 32,
        epsilon: float = 1e-5,
        use_scale: bool = True,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(
                f"{num_features} channels cannot be cut into num_groups={num_groups} groups of equal size; "
                "GroupNorm takes a num_groups that divides the channels."
            )
        super().__init__(
            num_features,
            num_groups,
            epsilon=epsilon,
            use_scale=use_scale,
            use_bias=use_bias,
            dtype=None,
            param_dtype=param_dtype,
            use_fast_variance=False,
            rngs=rngs,
        )
        self.num_features = num_features
        self.output_dtype = dtype

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalises ``x`` ``[n, *spatial, c]``; ``mask`` ``[n, *spatial]`` is true where a position counts.

        Masked positions take no part in the statistics and come out as zero.
        """
        require_floating(x, "GroupNorm")
        require_num_features(self, x, self.num_features)
        dtype = x.dtype if self.output_dtype is None else self.output_dtype
        if x.size == 0:
            return x.astype(dtype)
        if mask is None:
            return super().__call__(x).astype(dtype)
        if mask.shape != x.shape[:-1]:
            raise ValueError(f"mask has shape {mask.shape} for an input of shape {x.shape}; it must be {x.shape[:-1]}.")
        keep = jnp.broadcast_to(mask.astype(bool)[..., None], x.shape)
        # Cleared first: a masked position may hold NaN.
        y = super().__call__(jnp.where(keep, x, 0), mask=keep)
        return jnp.where(keep, y, 0).astype(dtype)
