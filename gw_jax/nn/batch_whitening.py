"""Whitening over the batch: decorrelated batch normalisation (DBN) and iterative normalisation (IterNorm)."""

from collections.abc import Hashable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.calling import finish, output_dtype, prepare
from gw_jax.nn.initializers import constant, identities
from gw_jax.nn.running_statistics import (
    check_statistics_options,
    group_batch,
    initial_statistics,
    running_average,
    update_running_average,
)
from gw_jax.ops.batch_whitening import (
    DEFAULT_BATCH_EPSILON,
    apply_whitening,
    batch_covariance,
    centre_batch,
    group_channels,
    real_channels,
    ungroup_channels,
    whitening_matrix,
    with_identity_padding,
)
from gw_jax.ops.checks import accumulation_dtype, require_integer
from gw_jax.ops.options import Method, check_whitening_options

Running = Literal["whitening", "covariance"]

# The reference's DBN has 16; its IterNorm has no default.
DEFAULT_CHANNELS_PER_GROUP: dict[str, int] = {"newton": 64, "zca": 16}


class BatchWhitening(nnx.Module):
    """Whitens groups of channels over the batch and all positions, then scales and shifts every channel.

    In training, with the ``d`` channels of a group as rows of ``X`` and the ``m`` positions of all examples as columns::

        mu = X 1 / m,   C = (X - mu)(X - mu)^T / m + epsilon I,   y = scale * C^(-1/2) (X - mu) + bias
        running mean   <- momentum * running mean + (1 - momentum) * mu
        running matrix <- momentum * running matrix + (1 - momentum) * C^(-1/2)     with running="whitening"
        running matrix <- momentum * running matrix + (1 - momentum) * C            with running="covariance"

    In evaluation the running mean replaces ``mu``, and the running whitening matrix, or ``C^(-1/2)`` of the running
    covariance, the one of the batch. Method "zca" is DBN, "newton" is IterNorm; with ``running="covariance"`` they are the
    "Sigma" variants. The last group has the remaining channels when ``channels_per_group`` does not divide them.
    All groups are computed at once.

    Warning:
        Unlike :class:`GroupWhitening` it depends on the batch. Groups with more channels than there are examples times
        positions have no full-rank covariance; ``epsilon`` alone bounds them.

    Source: Huang et al., Decorrelated Batch Normalization (CVPR 2018) and Iterative Normalization (CVPR 2019); the
    reference's ``DBN``, ``DBNSigma``, ``IterNorm`` and ``IterNormSigma``. Derivatives are exact in training and in
    evaluation, and finite where eigenvalues coincide, which the reference's are not.

    Args:
        num_features: channels ``c`` of the input.
        channels_per_group: channels ``d`` that are whitened together; more than ``c`` are one group of ``c``. None for the
            reference's 16 with "zca", and for 64 with "newton".
        method: "newton" or "zca".
        running: which matrix is averaged for evaluation, "whitening" or "covariance".
        num_iterations: Newton-Schulz iterations.
        momentum: the decay, the share of the old running statistics. The reference's ``momentum`` is 1 minus this.
        epsilon: added to the covariance's diagonal; None for the reference's value (1e-5 with "newton", 1e-3 with "zca").
        use_scale: whether there is a ``scale`` ``[c]``, initially ones.
        use_bias: whether there is a ``bias`` ``[c]``, initially zeros.
        group_size: consecutive examples that share statistics in training, None for the whole batch; must divide the batch
            (with ``axis_name``, the share of one member). The running statistics take the average over the sets.
        statistics_sets: None for one running statistic, averaged over the groups. The number of groups in a training batch
            gives each group a row of its own (a leading axis of the statistics), and averages in evaluation only: the same
            numbers, without the communication of an average where devices hold whole groups.
        axis_name: mapped axis (of ``jax.shard_map``, ``pmap`` or ``vmap``) over which statistics are computed. Members with
            more unmasked positions weigh more. With ``group_size``, only the running statistics are averaged.
        use_running_average: whether the layer starts in evaluation; ``model.train()`` and ``model.eval()`` switch it.
        dtype: type of the output; None for the input's. Statistics are in float32 (float64 for float64 input).
        param_dtype: type of ``scale`` and ``bias``.
        rngs: an argument of every NNX layer; nothing random is drawn.

    Raises:
        ValueError: options out of range; the message names what is allowed.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from gw_jax import BatchWhitening
        >>> norm = BatchWhitening(4, channels_per_group=4, method="zca", epsilon=1e-6, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (64, 5, 5, 4)) @ jnp.tri(4)  # correlated channels
        >>> y = norm(x).reshape(-1, 4)
        >>> bool(jnp.allclose(y.T @ y / len(y), jnp.eye(4), atol=1e-3))
        True
    """

    def __init__(
        self,
        num_features: int,
        *,
        channels_per_group: int | None = None,
        method: Method = "newton",
        running: Running = "whitening",
        num_iterations: int = 5,
        momentum: float = 0.9,
        epsilon: float | None = None,
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
        check_whitening_options(method, num_iterations, epsilon)
        if running not in ("whitening", "covariance"):
            raise ValueError(f"running={running!r} is not known; choose 'whitening' or 'covariance'.")
        check_statistics_options(momentum, group_size, statistics_sets)
        if channels_per_group is None:
            channels_per_group = DEFAULT_CHANNELS_PER_GROUP[method]
        require_integer("channels_per_group", channels_per_group, 1)
        self.num_features = require_integer("num_features", num_features, 1)
        self.channels_per_group = min(channels_per_group, num_features)
        self.num_groups = -(-num_features // self.channels_per_group)
        self.method: Method = method
        self.running: Running = running
        self.num_iterations = num_iterations
        self.momentum = momentum
        self.epsilon = DEFAULT_BATCH_EPSILON[method] if epsilon is None else epsilon
        self.group_size = group_size
        self.statistics_sets = statistics_sets
        self.axis_name = axis_name
        self.use_running_average = use_running_average
        self.dtype = dtype
        self.scale = nnx.Param(constant(rngs, 1, (num_features,), param_dtype)) if use_scale else None
        self.bias = nnx.Param(constant(rngs, 0, (num_features,), param_dtype)) if use_bias else None
        statistics_dtype = accumulation_dtype(param_dtype)
        self.mean = nnx.BatchStat(initial_statistics(self, rngs, 0, (num_features,), statistics_dtype))
        # [groups, d, d], the identity where the last group is padded.
        counts = (self.num_groups,) if statistics_sets is None else (statistics_sets, self.num_groups)
        self.matrix = nnx.BatchStat(identities(rngs, counts, self.channels_per_group, statistics_dtype))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Hook of ``flax.nnx.view``, which makes a training or an evaluation view of a model."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    @property
    def _real(self) -> np.ndarray:
        return real_channels(self.num_features, self.num_groups, self.channels_per_group)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Whitens ``x`` ``[n, *spatial, c]`` and, in training, updates the running statistics.

        ``mask`` ``[n, *spatial]`` is true where a position counts; the others do not enter the statistics and come
        out as zero. A batch without any such position leaves the running statistics as they are. ``relu``: whether
        ``max(., 0)`` is applied to the output.

        Raises:
            TypeError: ``x`` is not floating point.
            ValueError: ``x`` or ``mask`` has another shape, or ``group_size`` does not divide the batch.
        """
        given, (x, mask) = x, prepare(self, x, mask)
        if x.size == 0:
            return given.astype(output_dtype(self, x))
        values = x.astype(accumulation_dtype(x.dtype))
        group_size = None if self.use_running_average else self.group_size
        sets = group_batch(self, group_channels(values, self.num_groups, self.channels_per_group), group_size)
        keep = None if mask is None else group_batch(self, mask.astype(bool)[..., None, None], group_size)
        if self.use_running_average:
            whitening, centred = self._evaluation(sets, keep)
        else:
            whitening, centred = self._batch_statistics(sets, keep)
        y = ungroup_channels(apply_whitening(whitening, centred), self.num_features).reshape(x.shape)
        return finish(self, y, given, mask, relu)

    def _evaluation(self, sets: jax.Array, keep: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        real, dtype = self._real, sets.dtype
        mean = group_channels(running_average(self, self.mean).astype(dtype), self.num_groups, self.channels_per_group)
        centred = sets - mean.reshape((1,) * (sets.ndim - 2) + mean.shape)
        if keep is not None:
            centred = jnp.where(keep, centred, 0)
        matrix = running_average(self, self.matrix).astype(dtype)[None]
        if self.running == "whitening":
            return matrix, centred
        # The stored covariance includes epsilon. Taking it off to add it to the eigenvalues bounds those that rounding
        # made smaller than epsilon.
        both = (real[..., :, None] & real[..., None, :])[None]
        epsilon = self.epsilon if self.method == "zca" else 0.0
        identity = np.eye(self.channels_per_group, dtype=dtype)[None, None]
        covariance = jnp.where(both, matrix - epsilon * identity, 0)
        return self._inverse_sqrt(covariance, epsilon), centred

    def _batch_statistics(self, sets: jax.Array, keep: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        axis_name = self.axis_name if self.group_size is None else None
        centred, mean, count = centre_batch(sets, keep, axis_name)
        covariance = batch_covariance(centred, count, axis_name)
        whitening = self._inverse_sqrt(covariance, self.epsilon)
        if self.running == "whitening":
            matrix = whitening
        else:
            identity = np.eye(self.channels_per_group, dtype=sets.dtype)[None, None]
            matrix = with_identity_padding(covariance + self.epsilon * identity, self._real)
        update_running_average(self, self.mean, ungroup_channels(mean, self.num_features), count)
        update_running_average(self, self.matrix, matrix, count)
        return whitening, centred

    def _inverse_sqrt(self, covariance: jax.Array, epsilon: float) -> jax.Array:
        return whitening_matrix(
            covariance, self._real, method=self.method, num_iterations=self.num_iterations, epsilon=epsilon
        )
