"""Normalisation layers by name, so that a network's norm is a line of its configuration."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args, overload

import jax
import jax.numpy as jnp
from flax import nnx

from gw_jax.errors import unknown_name
from gw_jax.nn.batch_norm import BatchNorm
from gw_jax.nn.batch_whitening import BatchWhitening
from gw_jax.nn.frozen_batch_norm import FrozenBatchNorm
from gw_jax.nn.group_whitening import GroupWhitening
from gw_jax.nn.per_sample_norms import GroupNorm, InstanceNorm, LayerNorm
from gw_jax.nn.reference_norms import NORM_CFG_KEYS, REFERENCE_NORMS, NormName, ReferenceNormName, translate_norm_cfg

AnyNormName = NormName | ReferenceNormName


class Identity(nnx.Module):
    """Returns its input: the norm called "none".

    Example:
        >>> from gw_jax.nn import Identity
        >>> import jax.numpy as jnp
        >>> Identity()(jnp.array([[-1.0, 1.0]]), relu=True).tolist()
        [[0.0, 1.0]]
    """

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Hook of ``flax.nnx.view``: training equals evaluation, so there is nothing to switch."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Returns ``x``, zero where ``mask`` ``[n, *spatial]`` is false, and ``max(., 0)`` of it with ``relu``."""
        if mask is not None:
            x = jnp.where(mask.astype(bool)[..., None], x, 0)
        return jax.nn.relu(x) if relu else x


Norm = GroupWhitening | BatchWhitening | BatchNorm | FrozenBatchNorm | GroupNorm | LayerNorm | Identity

# name: (constructor, the arguments that the name decides, other arguments that then mean nothing)
_NORMS: dict[str, tuple[Callable[..., Norm], dict[str, Any], tuple[str, ...]]] = {
    "gw": (GroupWhitening, {"method": "newton"}, ()),
    "gw_zca": (GroupWhitening, {"method": "zca"}, ("num_iterations",)),
    "bn": (BatchNorm, {}, ()),
    "frozen_bn": (FrozenBatchNorm, {}, ()),
    "gn": (GroupNorm, {}, ()),
    "ln": (LayerNorm, {}, ()),
    "in": (InstanceNorm, {}, ()),
    "iternorm": (BatchWhitening, {"method": "newton", "running": "whitening"}, ()),
    "iternorm_sigma": (BatchWhitening, {"method": "newton", "running": "covariance"}, ()),
    "dbn": (BatchWhitening, {"method": "zca", "running": "whitening"}, ("num_iterations",)),
    "dbn_sigma": (BatchWhitening, {"method": "zca", "running": "covariance"}, ("num_iterations",)),
}
NORM_NAMES: tuple[NormName, ...] = get_args(NormName)

# Options of ours that may stand beside the reference's, which has none like them.
_COMMON = ("dtype", "param_dtype", "group_size", "statistics_sets", "axis_name")


@functools.cache
def norm_options(name: str) -> tuple[str, ...]:
    """The options that :func:`make_norm` accepts for ``name``.

    Raises:
        ValueError: no norm is called ``name``.

    Example:
        >>> from gw_jax.nn import norm_options
        >>> "num_iterations" in norm_options("gw"), "momentum" in norm_options("gw")
        (True, False)
    """
    if name == "none":
        return ()
    if name not in _NORMS:
        choices = f"one of {', '.join(NORM_NAMES)}, or the reference's name of one"
        raise ValueError(unknown_name("norm", name, (*NORM_NAMES, *REFERENCE_NORMS), choices=choices))
    layer, decided, unused = _NORMS[name]
    arguments = inspect.signature(inspect.getattr_static(layer, "__init__")).parameters
    return tuple(a for a in arguments if a not in (*decided, *unused, "self", "num_features", "rngs"))


@overload
def make_norm(
    name: Literal["gw", "gw_zca", "IGWItN", "IGWSVD"], num_features: int, *, rngs: nnx.Rngs, **options: Any
) -> GroupWhitening: ...
@overload
def make_norm(
    name: Literal["iternorm", "iternorm_sigma", "dbn", "dbn_sigma", "ItN", "ItNSigma", "DBN", "DBNSigma"],
    num_features: int,
    *,
    rngs: nnx.Rngs,
    **options: Any,
) -> BatchWhitening: ...
@overload
def make_norm(name: Literal["bn", "BN"], num_features: int, *, rngs: nnx.Rngs, **options: Any) -> BatchNorm: ...
@overload
def make_norm(name: Literal["frozen_bn"], num_features: int, *, rngs: nnx.Rngs, **options: Any) -> FrozenBatchNorm: ...
@overload
def make_norm(name: Literal["gn", "GN"], num_features: int, *, rngs: nnx.Rngs, **options: Any) -> GroupNorm: ...
@overload
def make_norm(name: Literal["ln", "LN"], num_features: int, *, rngs: nnx.Rngs, **options: Any) -> LayerNorm: ...
@overload
def make_norm(name: Literal["in", "IN"], num_features: int, *, rngs: nnx.Rngs, **options: Any) -> InstanceNorm: ...
@overload
def make_norm(name: Literal["none", "No", "None"], num_features: int, *, rngs: nnx.Rngs, **options: Any) -> Identity: ...
@overload
def make_norm(name: AnyNormName, num_features: int, *, rngs: nnx.Rngs, **options: Any) -> Norm: ...
def make_norm(name: str, num_features: int, *, rngs: nnx.Rngs, **options: Any) -> Norm:
    """Makes the normalisation layer called ``name``.

    ==============  ==========  ==================================================================================
    name            reference   layer
    ==============  ==========  ==================================================================================
    gw              IGWItN      :class:`GroupWhitening` by Newton iteration
    gw_zca          IGWSVD      :class:`GroupWhitening` by eigendecomposition
    bn              BN          :class:`BatchNorm`
    frozen_bn                   :class:`FrozenBatchNorm`, whose arrays never change
    gn              GN          :class:`GroupNorm`
    ln              LN          :class:`LayerNorm` over the channels of every position
    in              IN          :class:`InstanceNorm`
    iternorm        ItN         :class:`BatchWhitening` by Newton iteration, running whitening matrix
    iternorm_sigma  ItNSigma    the same with running covariance
    dbn             DBN         :class:`BatchWhitening` by eigendecomposition, running whitening matrix
    dbn_sigma       DBNSigma    the same with running covariance
    none            No, None    the identity
    ==============  ==========  ==================================================================================

    All of them are called as ``norm(x, mask=None, relu=False)`` on ``x`` ``[n, *spatial, num_features]``.

    Args:
        name: one of the names above, ours or the reference's.
        num_features: channels of the input.
        rngs: the generators of the parameters.
        **options: keyword arguments of the layer. With the reference's name they are the reference's (``T``,
            ``num_groups``, ``num_channels``, ``eps``, ``momentum`` as the share of the *new* statistics, ``affine``),
            beside ``dtype``, ``param_dtype``, ``group_size``, ``statistics_sets`` and ``axis_name``, which it does not
            have.

    Raises:
        ValueError: an unknown name, or an option that the layer does not have; the message lists the known ones.

    Example:
        >>> from flax import nnx
        >>> from gw_jax import make_norm
        >>> type(make_norm("gw", 64, num_groups=16, rngs=nnx.Rngs(0))).__name__
        'GroupWhitening'
        >>> make_norm("IGWItN", 64, T=3, num_groups=16, rngs=nnx.Rngs(0)).num_iterations  # the reference's names
        3
    """
    if name in REFERENCE_NORMS:
        foreign = [key for key in options if key not in (*NORM_CFG_KEYS, *_COMMON)]
        if foreign:
            raise ValueError(
                f"{name!r} is the reference's name, whose options are {', '.join(NORM_CFG_KEYS)}; {foreign} are none of "
                f"them. For the options of this project call it {REFERENCE_NORMS[name]!r}."
            )
        common = {key: options.pop(key) for key in _COMMON if key in options}
        name, options = translate_norm_cfg(name, options)
        options |= common
    allowed = norm_options(name)
    if name == "none":
        # One set of options often serves several norms' common arguments.
        options = {key: value for key, value in options.items() if key not in ("dtype", "param_dtype")}
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise ValueError(f"The normalisation {name!r} has no option {unknown}; it accepts {', '.join(allowed) or 'none'}.")
    if name == "none":
        return Identity()
    layer, decided, _ = _NORMS[name]
    return layer(num_features, rngs=rngs, **decided, **options)
