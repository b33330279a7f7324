"""Group Whitening as a Flax Linen layer."""

import jax
import jax.numpy as jnp
from flax import linen
from jax.typing import DTypeLike

from gw_jax.ops.group_whitening import group_whiten
from gw_jax.ops.options import Implementation, Method, groups_of


class GroupWhitening(linen.Module):
    """The Linen twin of :class:`gw_jax.GroupWhitening`: the same function, bit for bit.

    The number of channels is read from the input, as usual in Linen. Parameters are ``scale`` and ``bias`` ``[c]``.

    Attributes:
        num_groups: groups of channels; must divide them. More than the channels are clamped to them.
        method: "newton" or "zca".
        num_iterations: Newton-Schulz iterations.
        epsilon: added to the covariance's diagonal; None for the reference's value (0, or 1e-5 with "zca").
        use_scale: whether there is a ``scale``, initially ones.
        use_bias: whether there is a ``bias``, initially zeros.
        dtype: type of the output; None for the input's.
        param_dtype: type of ``scale`` and ``bias``.
        channels_per_group: the size of a block instead of their number.
        implementation: how it is computed, see :func:`gw_jax.group_whiten`.

    Source: Huang et al., Group Whitening, CVPR 2021 (arXiv 2009.13333).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gw_jax.linen import GroupWhitening
        >>> norm = GroupWhitening(num_groups=16)
        >>> variables = norm.init(jax.random.key(0), jnp.ones((1, 4, 4, 64)))
        >>> norm.apply(variables, jnp.ones((8, 4, 4, 64))).shape
        (8, 4, 4, 64)
    """

    num_groups: int = 32
    method: Method = "newton"
    num_iterations: int = 5
    epsilon: float | None = None
    use_scale: bool = True
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    channels_per_group: int | None = None
    implementation: Implementation = "auto"

    @linen.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Whitens ``x`` ``[n, *spatial, c]``; ``mask`` ``[n, *spatial]`` is true where a position counts.

        ``relu``: whether ``max(., 0)`` is applied to the output, on GPUs in the same kernel.
        """
        shape = (x.shape[-1],)
        ones, zeros = linen.initializers.ones, linen.initializers.zeros
        return group_whiten(
            x,
            self.num_groups if self.channels_per_group is None else groups_of(x.shape[-1], self.channels_per_group),
            method=self.method,
            num_iterations=self.num_iterations,
            epsilon=self.epsilon,
            mask=mask,
            scale=self.param("scale", ones, shape, self.param_dtype) if self.use_scale else None,
            bias=self.param("bias", zeros, shape, self.param_dtype) if self.use_bias else None,
            relu=relu,
            dtype=self.dtype,
            implementation=self.implementation,
        )
