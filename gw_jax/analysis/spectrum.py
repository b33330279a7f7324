"""Covariances of activations, and the numbers that describe their spectra."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gw_jax.errors import unknown_name
from gw_jax.ops.checks import accumulation_dtype, require_floating, require_mask_shape
from gw_jax.ops.options import resolve_num_groups
from gw_jax.ops.sharding import replicate
from gw_jax.versions import enable_x64

Per = Literal["sample", "batch"]


@dataclasses.dataclass(frozen=True, slots=True)
class Spectrum:
    """The spectra of ``k`` covariances of ``d`` variables: one per sample, or one of the batch (``k = 1``).

    A covariance ``C`` has the eigenvalues ``l_1 >= ... >= l_d >= 0``. An eigenvalue counts as zero, as rounding error,
    where::

        l_i <= t l_1,   t = (e max(d, sqrt(m)))^2

    with ``m`` observations of each variable and the machine epsilon ``e`` of float32, 1.2e-7, since activations have its
    rounding errors at least. For float64 activations ``t = 2.2e-16 max(d, sqrt(m))``. With ``m <= d`` observations at least
    ``d - m + 1`` eigenvalues are zero.

    Attributes:
        eigenvalues: ``[k, d]``, float64, in descending order, in squared units of the activations.
        observations: ``[k]``, the number ``m`` of observations of each variable.
        tolerance: ``[k]``, ``t``: the largest ratio ``l_i / l_1`` that counts as zero.
        covariance: ``[k, d, d]``, float64, or None where it was not requested.

    Example:
        >>> import jax
        >>> from gw_jax.analysis import spectrum
        >>> found = spectrum(jax.random.normal(jax.random.key(0), (8, 7, 7, 64)), num_groups=16)
        >>> found.eigenvalues.shape, int(found.rank[0])
        ((8, 16), 16)
    """

    eigenvalues: np.ndarray
    observations: np.ndarray
    tolerance: np.ndarray
    covariance: np.ndarray | None = None

    @property
    def num_variables(self) -> int:
        """The number ``d`` of variables: channel groups, or channels."""
        return self.eigenvalues.shape[1]

    @property
    def rank(self) -> np.ndarray:
        """``[k]``: the number of eigenvalues that do not count as zero; 0 for constant activations."""
        largest = self.eigenvalues[:, :1]
        return ((self.eigenvalues > self.tolerance[:, None] * largest) & (largest > 0)).sum(1)

    @property
    def condition_number(self) -> np.ndarray:
        """``[k]``: ``l_1 / l_r`` with ``r = rank``, the largest over the smallest eigenvalue that is not zero.

        Where ``rank < d`` the covariance is singular, its own condition number is infinite, and this is that of the
        subspace in which there is variance. Look at :attr:`rank`, too. NaN for constant activations.
        """
        rank = self.rank
        smallest = np.take_along_axis(self.eigenvalues, np.maximum(rank - 1, 0)[:, None], 1)[:, 0]
        return np.divide(self.eigenvalues[:, 0], smallest, out=np.full(len(rank), np.nan), where=rank > 0)

    @property
    def whitening_error(self) -> np.ndarray:
        """``[k]``: ``|C - I|_F / sqrt(d) = sqrt(mean_i (l_i - 1)^2)``; 0 for white, 1 for constant activations."""
        return np.sqrt(np.mean((self.eigenvalues - 1) ** 2, axis=1))

    @property
    def effective_rank(self) -> np.ndarray:
        """``[k]``: ``exp(-sum_i p_i log p_i)`` with ``p_i = l_i / sum_j l_j``, from 1 to ``d``; 0 for constant activations.

        Source: Roy and Vetterli, The effective rank (EUSIPCO 2007).
        """
        total = self.eigenvalues.sum(1, keepdims=True)
        share = np.divide(self.eigenvalues, total, out=np.zeros_like(self.eigenvalues), where=total > 0)
        entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
        return np.where(total[:, 0] > 0, np.exp(entropy), 0)


def covariance(
    x: ArrayLike, *, per: Per = "sample", num_groups: int | None = None, mask: ArrayLike | None = None
) -> np.ndarray:
    """The covariance of channel groups, or channels, of every sample or of the batch.

    The ``c`` channels are divided into ``d = num_groups`` consecutive groups (one per channel with None). Each group is one
    variable, the row of a matrix ``X``, with ``m`` observations: the ``c / d`` channels and all positions of one sample,
    or with ``per="batch"`` those of all samples. With the mean ``mu`` of every row::

        C = (X - mu)(X - mu)^T / m

    With ``per="sample"`` and the layer's groups, it is what :func:`gw_jax.group_whiten` whitens (without its epsilon); with
    ``per="batch"`` and channels, what batch whitening whitens.

    All of it is computed in float64, whatever the type of ``x`` and JAX's setting: in float32, squaring loses the
    eigenvalues below 1e-7 of the largest.

    Args:
        x: activations ``[n, *spatial, c]``, channels last, floating point.
        per: "sample" or "batch".
        num_groups: must divide ``c``; None for one variable per channel.
        mask: ``[n, *spatial]``, true where a position counts, or None.

    Returns:
        ``[k, d, d]``, float64: ``k = n`` per sample, 1 per batch.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``x`` is empty or not finite, ``num_groups`` does not divide ``c``, or there is one observation only.

    Source: Huang et al., Group Whitening (CVPR 2021), section 3.1.

    Example:
        >>> import jax
        >>> from gw_jax.analysis import covariance
        >>> covariance(jax.random.normal(jax.random.key(0), (8, 7, 7, 64)), num_groups=16).shape
        (8, 16, 16)
    """
    found, _ = _checked_moments(jnp.asarray(x), per, num_groups, mask, smaller=False)
    return np.asarray(found.gram) / np.maximum(np.asarray(found.observations), 1)[:, None, None]


def spectrum(
    x: ArrayLike,
    *,
    per: Per = "sample",
    num_groups: int | None = None,
    mask: ArrayLike | None = None,
    keep_covariance: bool = False,
) -> Spectrum:
    """The spectra of the covariances of activations ``x``; arguments and errors are those of :func:`covariance`.

    Args:
        x: activations ``[n, *spatial, c]``, channels last, floating point.
        per: "sample" or "batch".
        num_groups: must divide ``c``; None for one variable per channel.
        mask: ``[n, *spatial]``, true where a position counts, or None.
        keep_covariance: whether the result holds the covariances, too.

    Returns:
        ``k = n`` spectra per sample, one per batch.

    Example:
        >>> import jax
        >>> from gw_jax import group_whiten
        >>> from gw_jax.analysis import spectrum
        >>> x = 3 * jax.random.normal(jax.random.key(0), (8, 7, 7, 64))
        >>> white = spectrum(group_whiten(x, 16, method="zca"), num_groups=16)
        >>> bool(white.whitening_error.max() < 1e-3)
        True
    """
    x = jnp.asarray(x)
    found, variables = _checked_moments(x, per, num_groups, mask, smaller=not keep_covariance)
    return spectrum_of(found, variables, machine_epsilon(x), keep_covariance)


class Moments(NamedTuple):
    """Second moments of the centred activations: ``gram / observations`` has the eigenvalues of the covariance.

    gram: ``[k, d, d]``, float64; or ``[k, m, m]``, whose eigenvalues other than zero are the same, where that is smaller.
    observations: ``[k]``.
    finite: ``[k]``, whether all activations are finite.
    """

    gram: Any
    observations: Any
    finite: Any


def moments(x: jax.Array, per: Per, num_groups: int, mask: jax.Array | None = None, smaller: bool = True) -> Moments:
    """The moments of ``x`` ``[n, *spatial, c]``, see :func:`covariance`; for code that is traced by ``jax.jit``.

    ``smaller``: whether the matrix between the observations is returned where there are fewer of them than variables.
    """
    # JAX refuses to merge explicitly sharded axes.
    x, mask = replicate(x), None if mask is None else replicate(mask)
    samples, per_group = x.shape[0], x.shape[-1] // num_groups
    keep = None
    if mask is not None:
        keep = jnp.repeat(mask.astype(bool).reshape(samples, -1), per_group, axis=1)
        keep = keep.reshape(samples if per == "sample" else 1, -1, 1)
    # Only these operations are in float64; the model around them is not. They are simple ones: JAX lowers the program with
    # its usual types, in which an index of 64 bits has no place.
    with enable_x64():
        rows = jax.lax.convert_element_type(x, jnp.float64).reshape(samples, -1, num_groups, per_group)
        rows = rows.swapaxes(2, 3).reshape(samples if per == "sample" else 1, -1, num_groups)
        count = jnp.full(rows.shape[:1], rows.shape[1], rows.dtype)
        smallest = rows
        if keep is not None:
            # Selected, not multiplied: a masked position may hold NaN.
            rows, smallest = jnp.where(keep, rows, 0), jnp.where(keep, rows, jnp.inf)
            count = keep.astype(rows.dtype).sum((1, 2))
        finite = jnp.isfinite(rows).all((1, 2))
        # Relative to one of the values, so that a constant variable is exactly zero.
        first = smallest.min(1, keepdims=True)
        distance = rows - first if keep is None else jnp.where(keep, rows - first, 0)
        mean = distance.sum(1, keepdims=True) / jnp.maximum(count, 1)[:, None, None]
        centred = distance - mean if keep is None else jnp.where(keep, distance - mean, 0)
        product = "kid,kjd->kij" if smaller and rows.shape[1] < num_groups else "kmd,kme->kde"
        return Moments(jnp.einsum(product, centred, centred, precision="highest"), count, finite)


def spectrum_of(found: Moments, variables: int, epsilon: float, keep_covariance: bool) -> Spectrum:
    """The spectra of moments on the host, of activations with the machine epsilon ``epsilon``."""
    count = np.asarray(found.observations)
    matrices = np.asarray(found.gram) / np.maximum(count, 1)[:, None, None]
    values = np.linalg.eigvalsh(matrices)[:, ::-1].clip(0)
    eigenvalues = np.zeros((len(count), variables))
    eigenvalues[:, : values.shape[1]] = values
    size = np.maximum(variables, np.sqrt(count))
    tolerance = np.maximum((epsilon * size) ** 2, np.finfo(np.float64).eps * size)
    return Spectrum(eigenvalues, count.astype(np.int64), tolerance, matrices if keep_covariance else None)


def machine_epsilon(x: jax.Array) -> float:
    """The machine epsilon of activations: of float32, or of float64."""
    return float(jnp.finfo(accumulation_dtype(x.dtype)).eps)


def check_per(per: str) -> None:
    """Raises ValueError unless ``per`` is known."""
    if per not in get_args(Per):
        raise ValueError(unknown_name("per", per, get_args(Per)))


def check_activations(x: jax.Array, per: Per, num_groups: int | None, mask: Any = None) -> int:
    """The number of variables of ``x`` ``[n, *spatial, c]``.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: a shape that has no covariance, groups that do not divide the channels, or one observation only.
    """
    require_floating(x, "A covariance")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"The activations have shape {x.shape}; [n, *spatial, c] is needed, with at least one of each.")
    require_mask_shape(x, mask)
    channels = x.shape[-1]
    variables = channels if num_groups is None else num_groups
    if variables > channels:
        raise ValueError(f"num_groups={num_groups} exceeds the {channels} channels; choose a divisor of {channels}.")
    variables = resolve_num_groups(channels, variables)
    values = math.prod(x.shape[:-1] if per == "batch" else x.shape[1:-1])
    if values * (channels // variables) < 2:
        advice = f"num_groups below {channels}" if per == "batch" else f'num_groups below {channels}, or per="batch"'
        raise ValueError(
            f"Activations of shape {x.shape} have one observation of each of {variables} variables "
            f"{'in the batch' if per == 'batch' else 'per sample'}, which has no covariance. Choose {advice}."
        )
    return variables


_moments = jax.jit(moments, static_argnames=("per", "num_groups", "smaller"))


def _checked_moments(
    x: jax.Array, per: Per, num_groups: int | None, mask: ArrayLike | None, smaller: bool
) -> tuple[Moments, int]:
    check_per(per)
    mask = None if mask is None else jnp.asarray(mask)
    variables = check_activations(x, per, num_groups, mask)
    found = _moments(x, per, variables, mask, smaller)
    if not found.finite.all():
        raise ValueError(f"The activations of shape {x.shape} are not finite{bad_samples(found, per)}.")
    return found, variables


def bad_samples(found: Moments, per: Per) -> str:
    """The samples whose activations are not finite, for a message."""
    if per == "batch":
        return ""
    bad = np.flatnonzero(~np.asarray(found.finite))
    return f" in {len(bad)} of {len(found.finite)} samples (the first is sample {bad[0]})"
