"""Group Whitening as a pure function of arrays: its definition, and the choice of an implementation."""

import functools
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gw_jax.ops import kernels
from gw_jax.ops.checks import accumulation_dtype, as_floating, require_mask_shape
from gw_jax.ops.choice import choose_implementation
from gw_jax.ops.inverse_sqrt import HIGHEST, inverse_sqrt_newton, inverse_sqrt_zca
from gw_jax.ops.kernels.placement import device_kind
from gw_jax.ops.newton_chain import inverse_sqrt_newton_vjp
from gw_jax.ops.options import Implementation, Method, check_whitening_options, resolve_num_groups
from gw_jax.ops.row_products import matmul_whiten
from gw_jax.ops.sharding import replicate, reshard_like, shard_batch_only
from gw_jax.ops.statistics import SPATIAL_LETTERS, centre_groups, gram
from gw_jax.versions import no_kernels_because

InverseSqrt = Callable[[jax.Array], jax.Array]


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
    """Whiten the channel groups of every sample.

    The ``c`` channels of one sample are divided into ``g = num_groups`` consecutive blocks. Each block is one variable with
    ``m = (c / g) * (number of positions)`` observations, the columns of ``X`` ``[g, m]``::

        mu = X 1 / m,   C = (X - mu)(X - mu)^T / m + epsilon I,   Y = C^(-1/2) (X - mu)

    with the inverse square root by ``num_iterations`` Newton-Schulz steps (see :func:`inverse_sqrt_newton`) or by
    eigendecomposition (:func:`inverse_sqrt_zca`). Nothing crosses the batch axis: a sample's output does not depend on
    the other samples, training equals evaluation, and a batch that is sharded over devices needs no communication.

    Statistics and the inverse square root are computed in float32 (float64 for a float64 ``x``) with matrix products
    at the highest precision, whatever the type of ``x`` or JAX's default. On accelerators, centred values, matrices and
    derivatives of a bfloat16 or float16 ``x`` are rounded to its type before they are multiplied. In float32, values that
    differ from their group's mean by 1e-18 to 1e18 are whitened faithfully.

    A sample without variance (constant, or entirely masked) gives zeros, with finite derivatives.

    Args:
        x: ``[n, *spatial, c]``, channels last, any number of spatial axes from none up, floating point. It may be empty.
        num_groups: number of groups ``g``; must divide ``c``. More than ``c`` becomes ``c``, with a warning.
        method: "newton" (the paper's choice, the reference's IGWItN) or "zca" (its IGWSVD).
        num_iterations: Newton-Schulz iterations; not used by "zca".
        epsilon: added to the covariance's diagonal. None is the reference's choice: 0 for "newton", 1e-5 for "zca".
        mask: ``[n, *spatial]``, true (or non-zero) where a position counts. The other positions take no part in mean,
            covariance and count, whatever they hold, and come out as zero.
        scale: ``[c]``, multiplied to the whitened values, or None.
        bias: ``[c]``, added after the scale, or None. Masked positions stay zero.
        relu: whether ``max(., 0)`` is applied to the result. It is an epilogue of the kernels for GPUs, where XLA would
            read and write the result again. On other devices it makes no difference.
        dtype: type of the result; None for the type of ``x``.
        implementation: "plain" is the definition, differentiated by JAX. The others are the same function with hand-written
            derivatives: "matmul", in plain XLA (:mod:`gw_jax.ops.row_products`), and "kernel", fused kernels for TPUs and
            GPUs, for Newton iterations on ``[n, h, w, c]``, which have no forward mode; TPUs have some with a mask. "auto"
            uses a kernel that passed its check on this machine and is not known to be slower
            (:mod:`gw_jax.ops.kernels.answers`). Without one it is the better of "matmul" and "plain" there.
            "prefer_kernel" needs no check, but skips kernels that failed one. On several devices both use kernels only
            where the sharding of the batch is known: in ``jax.shard_map``, on meshes with explicit axes, and within
            :func:`gw_jax.ops.kernels.placement.batch_sharded_over`, as in the trainer.

    Returns:
        An array of the shape of ``x``. On a mesh with explicit axes it has the sharding of ``x``; where that shards other
        axes than the batch, they are gathered first, since a sample's statistics need all of it.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: shapes or options do not fit; the message names what is allowed.

    Source: Huang et al., Group Whitening: Balancing Learning Efficiency and Representational Capacity, CVPR 2021,
    section 3.1 (arXiv 2009.13333).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gw_jax import group_whiten
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16)) * 3 + 1
        >>> y = group_whiten(x, 4, num_iterations=10)
        >>> groups = y[0].reshape(-1, 4, 4).swapaxes(1, 2).reshape(-1, 4)  # observations of the 4 groups
        >>> bool(jnp.allclose(groups.T @ groups / len(groups), jnp.eye(4), atol=1e-2))
        True
    """
    x = as_floating(x, "group_whiten")
    if x.ndim < 2:
        raise ValueError(f"group_whiten got shape {x.shape}; [batch, *spatial, channels] is needed, at least 2 axes.")
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

    choice = choose_implementation(
        x,
        num_groups,
        method=method,
        num_iterations=num_iterations,
        epsilon=epsilon,
        has_mask=mask is not None,
        relu=relu,
        dtype=dtype,
        implementation=implementation,
    )
    implementation, spec = choice.implementation, choice.spec
    if implementation == "kernel":
        if spec is None:
            raise ValueError(
                f'implementation="kernel" with method={method!r}, num_iterations={num_iterations}, '
                f"{'no mask' if mask is None else 'a mask'} and an input of shape {x.shape} and type {x.dtype} on "
                f'{device_kind().kind!r}. {no_kernels_because() or kernels.SUPPORTED} Choose "auto" or "prefer_kernel".'
            )
        y = kernels.kernel_whiten(x, spec, scale, bias, kernel_definition, mask).astype(dtype)
        return reshard_like(jax.nn.relu(y) if relu and not spec.relu else y, whole)
    if method == "newton":
        newton = inverse_sqrt_newton_vjp if implementation == "matmul" else inverse_sqrt_newton
        inverse_sqrt = functools.partial(newton, num_iterations=num_iterations, epsilon=epsilon)
    else:
        inverse_sqrt = functools.partial(inverse_sqrt_zca, epsilon=epsilon)
    if implementation == "plain":
        y = plain_whiten(x, num_groups, inverse_sqrt, mask, scale, bias)
    else:
        platform = device_kind().platform
        # CPUs have no fast products of narrow types, and a wider result is requested for its digits.
        wide = platform == "cpu" or dtype.itemsize > x.dtype.itemsize
        factors = accumulation_dtype(x.dtype) if wide else x.dtype
        y = matmul_whiten(x, num_groups, inverse_sqrt, mask, scale, bias, factors=factors, platform=platform)
    y = y.astype(dtype)
    return reshard_like(jax.nn.relu(y) if relu else y, whole)


def plain_whiten(
    x: jax.Array,
    num_groups: int,
    inverse_sqrt: InverseSqrt,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """The definition of :func:`group_whiten`, differentiated by JAX.

    Args:
        x: ``[n, *spatial, c]``.
        num_groups: divides ``c``.
        inverse_sqrt: maps covariances ``[n, g, g]`` to whitening matrices.
        mask: ``[n, *spatial]``, or None.
        scale: ``[c]``, or ``[n, c]`` for one per sample, or None.
        bias: like ``scale``.

    Returns:
        An array of the shape of ``x``, in the type of its statistics.
    """
    # Splitting the last axis keeps the sharding of all the others; h and w are never merged.
    num_features = x.shape[-1]
    grouped = x.astype(accumulation_dtype(x.dtype)).reshape(*x.shape[:-1], num_groups, num_features // num_groups)
    keep = None if mask is None else mask.astype(bool)[..., None, None]
    centred, count = centre_groups(grouped, keep)
    whitening = inverse_sqrt(gram(centred) / count)
    spatial = SPATIAL_LETTERS[: x.ndim - 2]
    y = jnp.einsum(f"ngk,n{spatial}kc->n{spatial}gc", whitening, centred, precision=HIGHEST).reshape(x.shape)

    def per_channel(parameter: jax.Array) -> jax.Array:
        samples = x.shape[0] if parameter.ndim == 2 else 1
        return parameter.astype(y.dtype).reshape(samples, *(1,) * (x.ndim - 2), num_features)

    if scale is not None:
        y = y * per_channel(scale)
    if bias is not None:
        y = y + per_channel(bias)
        if mask is not None:
            y = jnp.where(mask.astype(bool)[..., None], y, 0)
    return y


def kernel_definition(
    spec: kernels.KernelSpec, x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """The definition of what a kernel computes, for ``scale`` and ``bias`` ``[n, c]``."""
    inverse_sqrt = functools.partial(inverse_sqrt_newton, num_iterations=spec.num_iterations, epsilon=spec.epsilon)
    y = plain_whiten(x, spec.num_groups, inverse_sqrt, mask, scale, bias).astype(x.dtype)
    return jax.nn.relu(y) if spec.relu else y


@functools.cache
def _warn_of_few_observations(observations: int, num_groups: int) -> None:
    warnings.warn(
        f"group_whiten has {observations} observations for each of {num_groups} groups, so the covariance of a sample has "
        f"no full rank and its output is not white. Choose fewer groups, or larger inputs.",
        stacklevel=3,
    )
