"""Batch normalisation with the statistics that the published networks were trained with."""

import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.checks import require_num_features
from gw_jax.ops.numerics import accumulation_dtype, require_floating, require_mask_shape


class BatchNorm(nnx.Module):
    """Normalises every channel over the batch and all positions, as PyTorch's BatchNorm does.

    In training, with mean and biased variance over the ``m`` values that share statistics::

        y = (x - mean) / sqrt(var + epsilon) * scale + bias
        running mean <- momentum * running mean + (1 - momentum) * mean
        running var  <- momentum * running var  + (1 - momentum) * var * m / (m - 1)

    In evaluation the running statistics stand in for the batch's. Two differences from ``flax.nnx.BatchNorm``: the
    running variance is unbiased, and statistics stay in float32 (float64 for float64 parameters) whatever ``dtype``.

    ``group_size`` says how many consecutive examples of the batch share statistics: None for all of them, 128 for what
    two GPUs saw in the paper's runs. It cuts the *batch*, not the devices, so the result does not depend on how many
    devices run it. The running statistics take the average over the groups.

    Under ``jax.jit`` with a sharded batch, "all of them" are the examples of all devices. Inside ``jax.shard_map``,
    ``jax.pmap`` or ``jax.vmap``, name the mapped axis in ``axis_name`` for the same.

    Source: Ioffe and Szegedy, Batch Normalization (ICML 2015); ``torch.nn.BatchNorm2d`` for the running variance.

    Args:
        num_features: channels ``c`` of the input.
        momentum: the share of the old running statistics that is kept. PyTorch's ``momentum`` is 1 minus this.
        epsilon: added to the variance.
        use_scale: whether there is a ``scale`` ``[c]``, initially ones.
        use_bias: whether there is a ``bias`` ``[c]``, initially zeros.
        group_size: examples that share statistics in training; must divide the batch (with ``axis_name``, the
            share of the batch that one member of the axis sees).
        axis_name: mapped axis over which statistics are averaged. With ``group_size``, groups stay within one member
            and only the running statistics are averaged.
        use_running_average: whether the layer starts in evaluation; ``model.train()`` and ``model.eval()`` switch it.
        dtype: type of the output; None for the input's.
        param_dtype: type of ``scale`` and ``bias``.
        rngs: taken as by every NNX layer; nothing random is drawn.
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
        axis_name: Hashable | None = None,
        use_running_average: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del rngs
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}; it is the share of the old statistics that is kept, 0 to 1.")
        if epsilon < 0:
            raise ValueError(f"epsilon={epsilon}; it must be >= 0.")
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size={group_size}; give a number of examples >= 1, or None for the whole batch.")
        self.num_features = num_features
        self.momentum = momentum
        self.epsilon = epsilon
        self.group_size = group_size
        self.axis_name = axis_name
        self.use_running_average = use_running_average
        self.dtype = dtype
        statistics_dtype = accumulation_dtype(param_dtype)
        self.scale = nnx.Param(jnp.ones((num_features,), param_dtype)) if use_scale else None
        self.bias = nnx.Param(jnp.zeros((num_features,), param_dtype)) if use_bias else None
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), statistics_dtype))
        self.var = nnx.BatchStat(jnp.ones((num_features,), statistics_dtype))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What ``flax.nnx.view`` calls to make a training or an evaluation view of a model."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalises ``x`` ``[n, *spatial, c]`` and, in training, updates the running statistics.

        ``mask`` ``[n, *spatial]`` is true where a position counts; the others take no part in the statistics and come
        out as zero.

        Raises:
            TypeError: ``x`` is not floating point.
            ValueError: ``x`` or ``mask`` has another shape, or ``group_size`` does not divide the batch.
        """
        require_floating(x, "BatchNorm")
        require_num_features(self, x, self.num_features)
        require_mask_shape(x, mask)
        dtype = x.dtype if self.dtype is None else self.dtype
        if x.size == 0:
            return x.astype(dtype)
        values = x.astype(accumulation_dtype(x.dtype))
        keep = None if mask is None else mask.astype(bool)[..., None]
        if keep is not None:
            values = jnp.where(keep, values, 0)
        channel = (1,) * (x.ndim - 1) + (self.num_features,)
        if self.use_running_average:
            centred = values - self.mean[...].astype(values.dtype).reshape(channel)
            factor = jax.lax.rsqrt(self.var[...].astype(values.dtype) + self.epsilon).reshape(channel)
        else:
            centred, factor = self._batch_statistics(values, keep)
        if self.scale is not None:
            factor = factor * self.scale[...].astype(values.dtype).reshape((1,) * (factor.ndim - 1) + (-1,))
        y = (centred * factor).reshape(x.shape)
        if self.bias is not None:
            y = y + self.bias[...].astype(values.dtype).reshape(channel)
        if keep is not None:
            y = jnp.where(keep, y, 0)
        return y.astype(dtype)

    def _batch_statistics(self, values: jax.Array, keep: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Centred values and ``1 / sqrt(var + epsilon)``, both ``[groups, examples, *spatial, c]`` or broadcastable."""
        batch, group_size = values.shape[0], self.group_size or values.shape[0]
        if batch % group_size:
            raise ValueError(
                f"BatchNorm got a batch of {batch} examples, which group_size={group_size} does not divide. Choose "
                "a batch that is a multiple of group_size, or group_size=None for statistics of the whole batch."
            )
        # Groups of consecutive examples: where a device holds whole groups, this needs no communication.
        grouped = (batch // group_size, group_size)
        values = values.reshape(*grouped, *values.shape[1:])
        axes = tuple(range(1, values.ndim - 1))
        axis_name = self.axis_name if self.group_size is None else None

        def over_axis(summed: jax.Array) -> jax.Array:
            return summed if axis_name is None else jax.lax.psum(summed, axis_name)

        if keep is None:
            count = over_axis(jnp.full((1,) * values.ndim, math.prod(values.shape[1:-1]), values.dtype))
        else:
            keep = keep.reshape(*grouped, *keep.shape[1:])
            count = jnp.maximum(over_axis(keep.sum(axes, keepdims=True, dtype=values.dtype)), 1)
        mean = over_axis(values.sum(axes, keepdims=True)) / count
        centred = values - mean
        if keep is not None:
            centred = jnp.where(keep, centred, 0)
        var = over_axis((centred * centred).sum(axes, keepdims=True)) / count
        self._update_running(mean, var * (count / jnp.maximum(count - 1, 1)))
        return centred, jax.lax.rsqrt(var + self.epsilon)

    def _update_running(self, mean: jax.Array, unbiased_var: jax.Array) -> None:
        for running, batch in ((self.mean, mean), (self.var, unbiased_var)):
            old = running[...]
            new = jax.lax.stop_gradient(batch).reshape(-1, self.num_features).mean(0)
            if self.axis_name is not None and self.group_size is not None:
                new = jax.lax.pmean(new, self.axis_name)
            running[...] = self.momentum * old + (1 - self.momentum) * new.astype(old.dtype)
