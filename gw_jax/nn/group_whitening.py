"""Group Whitening as a Flax NNX layer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.calling import require_num_features
from gw_jax.nn.initializers import constant
from gw_jax.ops.group_whitening import group_whiten
from gw_jax.ops.options import Implementation, Method, check_whitening_options, groups_of, resolve_num_groups


class GroupWhitening(nnx.Module):
    """Whitens the channel groups of every sample, then scales and shifts every channel.

    For one sample, with the channels in ``num_groups`` consecutive blocks as the rows of ``X``::

        y = scale * C^(-1/2) (X - mean) + bias,   C = cov(X) of that sample

    There are no running statistics: training and evaluation are the same function, whatever the batch size.
    :func:`gw_jax.group_whiten` states the operation, its numbers and its errors.

    Warning:
        With Newton iterations the output is only nearly white. Its scale falls with the number of groups (0.98 for
        16 groups, 0.77 for 64, at 5 iterations and uncorrelated input). The affine parameters make up for it.

    Source: Huang et al., Group Whitening, CVPR 2021 (arXiv 2009.13333); the reference's ``GroupItN`` and ``GroupSVD``.

    Args:
        num_features: channels ``c`` of the input.
        num_groups: groups of channels; must divide ``num_features``. More than that are clamped to it.
        channels_per_group: the size of a block instead of their number, which then grows with the layers of a network.
        method: "newton" or "zca".
        num_iterations: Newton-Schulz iterations.
        epsilon: added to the covariance's diagonal; None for the reference's value (0, or 1e-5 with "zca").
        use_scale: whether there is a ``scale`` ``[c]``, initially ones.
        use_bias: whether there is a ``bias`` ``[c]``, initially zeros.
        dtype: type of the output; None for the input's.
        param_dtype: type of ``scale`` and ``bias``.
        implementation: how it is computed, see :func:`gw_jax.group_whiten`.
        rngs: an argument of every NNX layer; nothing random is drawn.

    Raises:
        ValueError: options that do not fit each other or ``num_features``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from gw_jax import GroupWhitening
        >>> norm = GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
        >>> norm(jnp.ones((8, 4, 4, 64)), relu=True).shape
        (8, 4, 4, 64)
        >>> sorted(name for (name,), _ in nnx.to_flat_state(nnx.state(norm, nnx.Param)))
        ['bias', 'scale']
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int = 32,
        channels_per_group: int | None = None,
        method: Method = "newton",
        num_iterations: int = 5,
        epsilon: float | None = None,
        use_scale: bool = True,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        check_whitening_options(method, num_iterations, epsilon, implementation)
        self.num_features = num_features
        if channels_per_group is not None:
            num_groups = groups_of(num_features, channels_per_group)
        self.num_groups = resolve_num_groups(num_features, num_groups)
        self.method: Method = method
        self.num_iterations = num_iterations
        self.epsilon = epsilon
        self.dtype = dtype
        self.implementation: Implementation = implementation
        self.scale = nnx.Param(constant(rngs, 1, (num_features,), param_dtype)) if use_scale else None
        self.bias = nnx.Param(constant(rngs, 0, (num_features,), param_dtype)) if use_bias else None

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Hook of ``flax.nnx.view``: training equals evaluation, so there is nothing to switch."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Whitens ``x`` ``[n, *spatial, num_features]``; ``mask`` ``[n, *spatial]`` is true where a position counts.

        ``relu``: whether ``max(., 0)`` is applied to the output, on GPUs in the same kernel.
        """
        require_num_features(self, x, self.num_features)
        return group_whiten(
            x,
            self.num_groups,
            method=self.method,
            num_iterations=self.num_iterations,
            epsilon=self.epsilon,
            mask=mask,
            scale=None if self.scale is None else self.scale[...],
            bias=None if self.bias is None else self.bias[...],
            relu=relu,
            dtype=self.dtype,
            implementation=self.implementation,
        )
