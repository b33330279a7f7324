"""Group Whitening as a pure function of arrays."""

import functools
import math
import warnings
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gw_jax.ops import target
from gw_jax.ops.checks import as_floating, require_epsilon, require_integer, require_mask_shape
from gw_jax.ops.inverse_sqrt import inverse_sqrt_newton, inverse_sqrt_zca
from gw_jax.ops.kernels import fills_the_device, kernel_whiten, plan_for
from gw_jax.ops.matmul_whitening import matmul_whiten
from gw_jax.ops.newton import inverse_sqrt_with_short_derivative
from gw_jax.ops.plain_whitening import plain_whiten
from gw_jax.ops.sharding import replicate, reshard_like, shard_batch_only
from gw_jax.ops.verified import is_verified

Method = Literal["newton", "zca"]
Implementation = Literal["auto", "plain", "matmul", "kernel", "prefer_kernel"]

# The reference's IGWItN adds nothing to the covariance, its IGWSVD adds 1e-5 to the eigenvalues.
DEFAULT_EPSILON: dict[str, float] = {"newton": 0.0, "zca": 1e-5}


def resolve_num_groups(num_features: int, num_groups: int) -> int:
    """The number of groups that ``num_features`` channels are cut into when ``num_groups`` are asked for.

    More groups than channels become one group a channel, with a warning, as in the reference.

    Raises:
        ValueError: ``num_groups`` is no integer of at least 1, or does not divide ``num_features``.
    """
    num_features = require_integer("num_features", num_features, 1)
    num_groups = require_integer("num_groups", num_groups, 1)
    if num_groups > num_features:
        warnings.warn(
            f"num_groups={num_groups} exceeds the {num_features} channels: {num_features} groups of one channel "
            "are used, as in the reference. Give a num_groups of at most the number of channels to silence this.",
            stacklevel=3,
        )
        return num_features
    if num_features % num_groups:
        divisors = [d for d in range(1, num_features + 1) if num_features % d == 0]
        raise ValueError(
            f"{num_features} channels cannot be cut into num_groups={num_groups} groups of equal size. "
            f"Choose one of {divisors}."
        )
    return num_groups


def groups_of(num_features: int, channels_per_group: int) -> int:
    """The number of groups of ``channels_per_group`` channels each, as the reference counts them: rounded down.

    Raises:
        ValueError: ``channels_per_group`` is below 1 or above ``num_features``.
    """
    if require_integer("channels_per_group", channels_per_group, 1) > num_features:
        raise ValueError(
            f"channels_per_group={channels_per_group} of {num_features} channels; 1 to {num_features} are allowed."
        )
    return num_features // channels_per_group


def check_whitening_options(method: str, num_iterations: int, epsilon: float | None, implementation: str = "auto") -> float:
    """Checks the options that do not depend on the input and returns the epsilon to use.

    Raises:
        ValueError: an unknown ``method`` or ``implementation``, a ``num_iterations`` that is no integer of at least 0, an
            ``epsilon`` that is negative, NaN or infinite, or one of zero with "zca".
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation={implementation!r} is not known; choose one of {', '.join(get_args(Implementation))}."
        )
    if method not in DEFAULT_EPSILON:
        raise ValueError(f"method={method!r} is not known; choose one of {sorted(DEFAULT_EPSILON)}.")
    require_integer("num_iterations", num_iterations, 0)
    if epsilon is None:
        return DEFAULT_EPSILON[method]
    return require_epsilon(epsilon, positive=method == "zca", of=f" with method={method!r}")


@functools.cache
def _warn_of_few_observations(observations: int, num_groups: int) -> None:
    warnings.warn(
        f"group_whiten has {observations} observations for each of {num_groups} groups, so the covariance of a sample has "
        f"no full rank and its output is not white. Choose fewer groups, or larger inputs.",
        stacklevel=3,
    )


def group_whiten(
    x: jax.Array,
    num_groups: int,
    *,
    method: Method = "newton",
    num_iterations: int = 5,
    epsilon: float | None = None,
    mask: jax.Array | None = None,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    relu: bool = False,
    dtype: DTypeLike | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Whitens the channel groups of every sample.

    The ``c`` channels of one sample are cut into ``g = num_groups`` consecutive blocks. Each block is one variable with
    ``m = (c / g) * (number of positions)`` observations, the columns of ``X`` ``[g, m]``::

        mu = X 1 / m,   C = (X - mu)(X - mu)^T / m + epsilon I,   Y = C^(-1/2) (X - mu)

    with the inverse square root by ``num_iterations`` Newton-Schulz steps (see :func:`inverse_sqrt_newton`) or by
    eigendecomposition (:func:`inverse_sqrt_zca`). Nothing crosses the batch axis: a sample's output does not depend on
    the other samples, training equals evaluation, and a batch that is split over devices needs no communication.

    Statistics and the inverse square root are computed in float32 (float64 for a float64 ``x``) with matrix products
    at the highest precision, whatever the type of ``x`` or JAX's default. In float32, values that differ from
    their group's mean by 1e-18 to 1e18 are whitened faithfully.

    A sample without variance (constant, or entirely masked) gives zeros, with finite derivatives.

    Args:
        x: ``[n, *spatial, c]``, channels last, any number of spatial axes from none up, floating point. It may be empty.
        num_groups: number of groups ``g``; must divide ``c``. More than ``c`` is taken as ``c``, with a warning.
        method: "newton" (the paper's choice, the reference's IGWItN) or "zca" (its IGWSVD).
        num_iterations: Newton-Schulz iterations; not used by "zca".
        epsilon: added to the covariance's diagonal. None is the reference's choice: 0 for "newton", 1e-5 for "zca".
        mask: ``[n, *spatial]``, true (or non-zero) where a position counts. The other positions take no part in mean,
            covariance and count, whatever they hold, and come out as zero.
        scale: ``[c]``, multiplied to the whitened values, or None.
        bias: ``[c]``, added after the scale, or None. Masked positions stay zero.
        relu: whether ``max(., 0)`` is taken of the result. The kernels for GPUs do it on the way; XLA would read and write
            the result once more. On other devices it makes no difference.
        dtype: type of the result; None for the type of ``x``.
        implementation: "plain" is the definition, differentiated by JAX. The others are the same function with hand-written
            derivatives, and accept no mask: "matmul", in plain XLA, and "kernel", fused kernels for TPUs and GPUs, for
            Newton iterations on ``[n, h, w, c]``, which have no forward-mode derivative. "auto" uses a kernel where it was
            right and faster on that kind of device (:mod:`gw_jax.ops.verified`), else "matmul" on CPUs and GPUs and where
            there is no mask, else "plain". "prefer_kernel" also uses kernels that never ran on the device. On several
            devices both use kernels only where they know how the batch is sharded: in ``jax.shard_map``, on meshes with
            explicit axes, and within :func:`gw_jax.ops.target.samples_split`, as in the trainer.

    Returns:
        An array of the shape of ``x``. On a mesh with explicit axes it has the sharding of ``x``; where that shards other
        axes than the batch, they are gathered first, since a sample's statistics need all of it.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: shapes or options do not fit; the message names what is allowed.

    Source: Huang et al., Group Whitening: Balancing Learning Efficiency and Representational Capacity, CVPR 2021,
    section 3.1 (arXiv 2009.13333).
    """
    x = as_floating(x, "group_whiten")
    if x.ndim < 2:
        raise ValueError(f"group_whiten got shape {x.shape}; it takes [batch, *spatial, channels], at least 2 axes.")
    num_features = x.shape[-1]
    if num_features == 0:
        raise ValueError(f"group_whiten got shape {x.shape}, which has no channels; at least one is needed.")
    epsilon = check_whitening_options(method, num_iterations, epsilon, implementation)
    num_groups = resolve_num_groups(num_features, num_groups)
    require_mask_shape(x, mask)
    for name, parameter in (("scale", scale), ("bias", bias)):
        if parameter is not None and parameter.shape != (num_features,):
            raise ValueError(f"{name} has shape {parameter.shape}; an input of shape {x.shape} needs ({num_features},).")
    dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    if x.size == 0:
        return x.astype(dtype)
    observations = math.prod(x.shape[1:]) // num_groups
    if observations <= num_groups:
        _warn_of_few_observations(observations, num_groups)

    whole, (x, mask) = x, shard_batch_only(x, mask)
    scale, bias = (None if parameter is None else replicate(parameter) for parameter in (scale, bias))

    device = target.current()
    plan = None
    if implementation in ("auto", "kernel", "prefer_kernel") and method == "newton" and mask is None:
        plan = plan_for(x.shape, x.dtype, num_groups, num_iterations, epsilon, device, target.batch_sharding(x), relu=relu)
    if implementation in ("auto", "prefer_kernel"):
        fits = plan is not None and fills_the_device(plan, x.shape[0]) and dtype == x.dtype and target.split_is_known(x)
        if plan is not None and fits and implementation == "auto":
            fits = is_verified(plan.kernel, device.kind, x.dtype, num_iterations)
        products = device.platform in ("cpu", "gpu") and mask is None
        implementation = "kernel" if fits else "matmul" if products else "plain"
    if implementation == "kernel":
        if plan is None:
            raise ValueError(
                f'implementation="kernel" with method={method!r}, num_iterations={num_iterations}, '
                f"{'no mask' if mask is None else 'a mask'} and an input of shape {x.shape} and type {x.dtype} on "
                f"{device.kind!r}. There are kernels for TPU v4, v5e and v6e and for H100, H200 and B200 GPUs, for "
                'method="newton" with 2 to 14 iterations, no mask, bfloat16 or float32, and [n, h, w, c]: on TPUs with n a '
                "multiple of 8 and c 64, 128, 256, ... 1024 (v4: 64 or 128), or n a multiple of 128 and c 2, 4, ... "
                "64, that fits on the chip; on GPUs with 16, 32 or 64 groups of 1, 2, 4, ... 64 channels and at least 16 "
                'values. Choose "auto" or "prefer_kernel".'
            )
        y = kernel_whiten(x, plan, scale, bias).astype(dtype)
        return reshard_like(jax.nn.relu(y) if relu and not plan.relu else y, whole)
    if method == "newton":
        newton = inverse_sqrt_with_short_derivative if implementation == "matmul" else inverse_sqrt_newton
        inverse_sqrt = functools.partial(newton, num_iterations=num_iterations, epsilon=epsilon)
    else:
        inverse_sqrt = functools.partial(inverse_sqrt_zca, epsilon=epsilon)
    if implementation == "plain":
        y = plain_whiten(x, num_groups, inverse_sqrt, mask, scale, bias)
    elif mask is not None:
        raise ValueError('implementation="matmul" takes no mask; choose "auto" or "plain".')
    else:
        y = matmul_whiten(x, num_groups, inverse_sqrt, scale, bias)
    y = y.astype(dtype)
    return reshard_like(jax.nn.relu(y) if relu else y, whole)
