"""Norms whose statistics are those of one sample: group, instance and layer normalisation."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.calling import finish, output_dtype, prepare
from gw_jax.nn.initializers import constant
from gw_jax.ops.checks import accumulation_dtype, require_epsilon, require_integer
from gw_jax.ops.statistics import first_values, group_means
from gw_jax.ops.valid import select_valid


class GroupNorm(nnx.Module):
    """Normalises every group of consecutive channels of every sample to zero mean and unit variance.

    For one sample and one group, over the group's channels and all positions::

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    Training equals evaluation. It differs from ``flax.nnx.GroupNorm`` in PyTorch's epsilon of 1e-5, in masks of
    positions, and in running under strict type promotion, which Flax's layer does not.

    Args:
        num_features: channels ``c`` of the input.
        num_groups: groups of channels; must divide ``num_features``. It is not clamped.
        epsilon: added to the variance.
        use_scale: whether there is a ``scale`` ``[c]``, initially ones.
        use_bias: whether there is a ``bias`` ``[c]``, initially zeros.
        dtype: type of the output; None for the input's. Statistics are in float32 (float64 for float64 input).
        param_dtype: type of ``scale`` and ``bias``.
        rngs: an argument of every NNX layer; nothing random is drawn.

    Raises:
        ValueError: ``num_groups`` does not divide ``num_features``.

    Source: Wu and He, Group Normalization (ECCV 2018); ``torch.nn.GroupNorm``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from gw_jax import GroupNorm
        >>> x = jnp.arange(32.0).reshape(1, 2, 2, 8)
        >>> y = GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0))(x)
        >>> round(float(y[..., :4].mean()), 3), round(float(y[..., :4].std()), 3)
        (0.0, 1.0)
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
        require_integer("num_features", num_features, 1)
        if num_features % require_integer("num_groups", num_groups, 1):
            raise ValueError(
                f"{num_features} channels cannot be cut into num_groups={num_groups} groups of equal size; "
                "choose a num_groups that divides the channels."
            )
        require_epsilon(epsilon)
        self.num_features = num_features
        self.num_groups = num_groups
        self.epsilon = epsilon
        self.dtype = dtype
        self.scale = nnx.Param(constant(rngs, 1, (num_features,), param_dtype)) if use_scale else None
        self.bias = nnx.Param(constant(rngs, 0, (num_features,), param_dtype)) if use_bias else None

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Hook of ``flax.nnx.view``: training equals evaluation, so there is nothing to switch."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Normalises ``x`` ``[n, *spatial, c]``; ``mask`` ``[n, *spatial]`` is true where a position counts.

        Masked positions do not enter the statistics and come out as zero. ``relu``: whether ``max(., 0)`` is applied to
        the output.
        """
        given, (x, mask) = x, prepare(self, x, mask)
        if x.size == 0:
            return given.astype(output_dtype(self, x))
        values = x.astype(accumulation_dtype(x.dtype))
        positions = tuple(range(1, x.ndim - 1))

        def mean(summed: jax.Array, count: jax.Array | float) -> jax.Array:
            return jnp.expand_dims(group_means(summed.sum(positions), self.num_groups, count), positions)

        count: jax.Array | float = math.prod(x.shape[1:]) / self.num_groups
        mask = None if mask is None else mask.astype(bool)
        values = select_valid(values, mask)
        if mask is not None:
            kept = mask.sum(tuple(range(1, mask.ndim)), dtype=values.dtype)[:, None, None]
            count = jnp.maximum(kept * (x.shape[-1] // self.num_groups), 1)
        # Distances to one of the values, as in centre_groups: a constant group is exactly zero.
        distance = select_valid(values - jax.lax.stop_gradient(first_values(values, self.num_groups, mask)), mask)
        centred = select_valid(distance - mean(distance, count), mask)
        y = centred * jax.lax.rsqrt(mean(centred * centred, count) + self.epsilon)
        return finish(self, y, given, mask, relu)


class InstanceNorm(GroupNorm):
    """Normalises every channel of every sample over its positions: :class:`GroupNorm` with one group per channel.

    As in PyTorch there is no ``scale`` and no ``bias`` unless requested. An input without spatial axes comes out as zero.

    Args:
        num_features: channels ``c`` of the input.
        epsilon: added to the variance.
        use_scale: whether there is a ``scale`` ``[c]``, initially ones.
        use_bias: whether there is a ``bias`` ``[c]``, initially zeros.
        dtype: type of the output; None for the input's. Statistics are in float32 (float64 for float64 input).
        param_dtype: type of ``scale`` and ``bias``.
        rngs: an argument of every NNX layer; nothing random is drawn.

    Source: Ulyanov et al., Instance Normalization (arXiv 1607.08022); ``torch.nn.InstanceNorm2d``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from gw_jax import InstanceNorm
        >>> x = jnp.array([1.0, 3.0]).reshape(1, 2, 1)  # one sample, two positions, one channel
        >>> InstanceNorm(1, rngs=nnx.Rngs(0))(x).round(3).ravel().tolist()
        [-1.0, 1.0]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-5,
        use_scale: bool = False,
        use_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            num_features,
            num_groups=num_features,
            epsilon=epsilon,
            use_scale=use_scale,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )


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
        rngs: an argument of every NNX layer; nothing random is drawn.

    Raises:
        ValueError: ``epsilon`` is negative.

    Source: Ba et al., Layer Normalization (arXiv 1607.06450); ``torch.nn.LayerNorm``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from gw_jax import LayerNorm
        >>> LayerNorm(2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 3.0]])).round(3).tolist()
        [[-1.0, 1.0]]
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

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Hook of ``flax.nnx.view``: training equals evaluation, so there is nothing to switch."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Normalises ``x`` ``[n, *spatial, c]``; where ``mask`` ``[n, *spatial]`` is false the output is zero.

        ``relu``: whether ``max(., 0)`` is applied to the output.

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
