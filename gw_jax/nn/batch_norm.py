"""Batch normalisation with the statistics that the published networks were trained with."""

import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.calling import finish, output_dtype, prepare
from gw_jax.nn.initializers import constant
from gw_jax.nn.running_statistics import (
    check_statistics_options,
    group_batch,
    initial_statistics,
    running_average,
    update_running_average,
)
from gw_jax.ops.checks import accumulation_dtype, require_epsilon, require_integer
from gw_jax.ops.sharding import replicate
from gw_jax.ops.statistics import psum_if_named


class BatchNorm(nnx.Module):
    """Normalises every channel over the batch and all positions, as PyTorch's BatchNorm does.

    In training, with mean and biased variance over the ``m`` values that share statistics::

        y = (x - mean) / sqrt(var + epsilon) * scale + bias
        running mean <- momentum * running mean + (1 - momentum) * mean
        running var  <- momentum * running var  + (1 - momentum) * var * m / (m - 1)

    In evaluation the running statistics stand in for the batch's. Two differences from ``flax.nnx.BatchNorm``: the
    running variance is unbiased, and statistics stay in float32 (float64 for float64 parameters) whatever ``dtype``.

    ``group_size`` says how many consecutive examples of the batch share statistics: None for all of them, 128 as
    on each of the two GPUs of the paper's runs. It cuts the *batch*, not the devices, so the result does not depend on the
    number of devices. The running statistics take the average over the groups.

    Under ``jax.jit`` with a sharded batch, "all of them" are the examples of all devices. Inside ``jax.shard_map``,
    ``jax.pmap`` or ``jax.vmap``, name the mapped axis in ``axis_name`` for the same.

    Source: Ioffe and Szegedy, Batch Normalization (ICML 2015); ``torch.nn.BatchNorm2d`` for the running variance.

    Args:
        num_features: channels ``c`` of the input.
        momentum: the decay, the share of the old running statistics. PyTorch's ``momentum`` is 1 minus this.
        epsilon: added to the variance.
        use_scale: whether there is a ``scale`` ``[c]``, initially ones.
        use_bias: whether there is a ``bias`` ``[c]``, initially zeros.
        group_size: examples that share statistics in training; must divide the batch (with ``axis_name``, the
            share of the batch that one member of the axis sees).
        statistics_sets: None for one running statistic, averaged over the groups. The number of groups in a training batch
            gives each group a row of its own (a leading axis of the statistics), and averages in evaluation only: the same
            numbers, without the communication of an average where devices hold whole groups.
        axis_name: mapped axis over which statistics are averaged. With ``group_size``, groups stay within one member
            and only the running statistics are averaged.
        use_running_average: whether the layer starts in evaluation; ``model.train()`` and ``model.eval()`` switch it.
        dtype: type of the output; None for the input's.
        param_dtype: type of ``scale`` and ``bias``.
        rngs: an argument of every NNX layer; nothing random is drawn.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from gw_jax import BatchNorm
        >>> norm = BatchNorm(3, rngs=nnx.Rngs(0))
        >>> x = jnp.arange(12.0).reshape(4, 3)
        >>> bool(abs(norm(x).mean(0)).max() < 1e-6), norm.mean.shape
        (True, (3,))
        >>> norm.eval()
        >>> norm(x).shape
        (4, 3)
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        use_scale: bool = True,
        use_bias: bool = True,
        group_size: int | None = None,
        statistics_sets: int | None = None,
        axis_name: Hashable | None = None,
        use_running_average: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_statistics_options(momentum, group_size, statistics_sets)
        require_epsilon(epsilon)
        self.num_features = require_integer("num_features", num_features, 1)
        self.momentum = momentum
        self.epsilon = epsilon
        self.group_size = group_size
        self.statistics_sets = statistics_sets
        self.axis_name = axis_name
        self.use_running_average = use_running_average
        self.dtype = dtype
        statistics_dtype = accumulation_dtype(param_dtype)
        self.scale = nnx.Param(constant(rngs, 1, (num_features,), param_dtype)) if use_scale else None
        self.bias = nnx.Param(constant(rngs, 0, (num_features,), param_dtype)) if use_bias else None
        self.mean = nnx.BatchStat(initial_statistics(self, rngs, 0, (num_features,), statistics_dtype))
        self.var = nnx.BatchStat(initial_statistics(self, rngs, 1, (num_features,), statistics_dtype))
        # Nothing here depends on it; PyTorch's checkpoints hold it, and an export should equal PyTorch's.
        self.num_batches_tracked = nnx.BatchStat(constant(rngs, 0, (), jnp.int32))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Hook of ``flax.nnx.view``, which makes a training or an evaluation view of a model."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Normalises ``x`` ``[n, *spatial, c]`` and, in training, updates the running statistics.

        ``mask`` ``[n, *spatial]`` is true where a position counts; the others do not enter the statistics and come
        out as zero. ``relu``: whether ``max(., 0)`` is applied to the output.

        Raises:
            TypeError: ``x`` is not floating point.
            ValueError: ``x`` or ``mask`` has another shape, or ``group_size`` does not divide the batch.
        """
        given, (x, mask) = x, prepare(self, x, mask)
        if x.size == 0:
            return given.astype(output_dtype(self, x))
        values = x.astype(accumulation_dtype(x.dtype))
        group_size = None if self.use_running_average else self.group_size
        sets = group_batch(self, values, group_size)
        keep = None if mask is None else group_batch(self, mask.astype(bool)[..., None], group_size)
        if keep is not None:
            # Selected, not multiplied: a masked position may hold NaN.
            sets = jnp.where(keep, sets, 0)
        if self.use_running_average:
            channel = (1,) * x.ndim + (self.num_features,)
            centred = sets - running_average(self, self.mean).astype(sets.dtype).reshape(channel)
            factor = jax.lax.rsqrt(running_average(self, self.var).astype(sets.dtype) + self.epsilon).reshape(channel)
        else:
            first = group_batch(self, x[(slice(None), *(slice(1),) * (x.ndim - 2))], group_size)
            centred, factor = self._batch_statistics(sets, keep, first.astype(sets.dtype))
        # Scale and 1 / sqrt(var) meet before they touch the activations: one product less a value.
        if self.scale is not None:
            factor = factor * replicate(self.scale[...]).astype(sets.dtype).reshape((1,) * (factor.ndim - 1) + (-1,))
        return finish(self, (centred * factor).reshape(x.shape), given, mask, relu, is_scaled=True)

    def _batch_statistics(self, sets: jax.Array, keep: jax.Array | None, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Centred values and ``1 / sqrt(var + epsilon)`` of ``sets`` ``[s, b, *spatial, c]``, both broadcastable to it.

        ``first`` ``[s, b, 1, ..., c]`` is the first position of every example.
        """
        axes = tuple(range(1, sets.ndim - 1))
        axis_name = self.axis_name if self.group_size is None else None
        if keep is None:
            count = jnp.full((sets.shape[0],), math.prod(sets.shape[1:-1]), sets.dtype)
        else:
            count = keep.sum((*axes, -1), dtype=sets.dtype)
        count = psum_if_named(count, axis_name)
        divisor = jnp.maximum(count, 1).reshape(-1, *(1,) * (sets.ndim - 1))
        if keep is None:
            # Both sums in one pass over the values, as distances to the mean of every example's first position; Flax's
            # layer reads them as often. Digits are lost only where that mean is many standard deviations off: images of
            # 1000 +- 1 whose first pixel is 0 are wrong by 1.7e-4, as with Flax's layer. XLA reads the values twice more
            # where the distances serve for the output, too, or the first position comes from ``sets``.
            examples = divisor / math.prod(sets.shape[2:-1])
            shift = jax.lax.stop_gradient(psum_if_named(first.sum(1, keepdims=True), axis_name) / examples)
            distance = sets - shift
            distance_mean = psum_if_named(distance.sum(axes, keepdims=True), axis_name) / divisor
            squares = psum_if_named((distance * distance).sum(axes, keepdims=True), axis_name) / divisor
            mean = shift + distance_mean
            centred = sets - mean
            var = jnp.maximum(squares - distance_mean * distance_mean, 0)
        else:
            mean = psum_if_named(sets.sum(axes, keepdims=True), axis_name) / divisor
            centred = jnp.where(keep, sets - mean, 0)
            var = psum_if_named((centred * centred).sum(axes, keepdims=True), axis_name) / divisor
        unbiased = var * (divisor / jnp.maximum(divisor - 1, 1))
        update_running_average(self, self.mean, mean.reshape(-1, self.num_features), count)
        update_running_average(self, self.var, unbiased.reshape(-1, self.num_features), count)
        self.num_batches_tracked[...] = self.num_batches_tracked[...] + 1
        return centred, jax.lax.rsqrt(var + self.epsilon)
