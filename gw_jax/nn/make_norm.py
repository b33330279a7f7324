"""Normalisation layers by name, so that a network's norm is a line of its configuration."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from gw_jax.errors import unknown_name
from gw_jax.nn.batch_norm import BatchNorm
from gw_jax.nn.batch_whitening import BatchWhitening
from gw_jax.nn.group_whitening import GroupWhitening
from gw_jax.nn.per_sample_norms import GroupNorm, InstanceNorm, LayerNorm
from gw_jax.nn.reference_norms import NORM_CFG_KEYS, REFERENCE_NORMS, translate_norm_cfg


class Identity(nnx.Module):
    """Returns its input: the norm called "none"."""

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Hook of ``flax.nnx.view``: training equals evaluation, so there is nothing to switch."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Returns ``x``, or ``max(x, 0)`` with ``relu``; ``mask`` is accepted as by the other norms and not used."""
        del mask
        return jax.nn.relu(x) if relu else x


# name: (constructor, the arguments that the name decides, other arguments that then mean nothing)
_NORMS: dict[str, tuple[Callable[..., nnx.Module], dict[str, Any], tuple[str, ...]]] = {
    "gw": (GroupWhitening, {"method": "newton"}, ()),
    "gw_zca": (GroupWhitening, {"method": "zca"}, ("num_iterations",)),
    "bn": (BatchNorm, {}, ()),
    "gn": (GroupNorm, {}, ()),
    "ln": (LayerNorm, {}, ()),
    "in": (InstanceNorm, {}, ()),
    "iternorm": (BatchWhitening, {"method": "newton", "running": "whitening"}, ()),
    "iternorm_sigma": (BatchWhitening, {"method": "newton", "running": "covariance"}, ()),
    "dbn": (BatchWhitening, {"method": "zca", "running": "whitening"}, ("num_iterations",)),
    "dbn_sigma": (BatchWhitening, {"method": "zca", "running": "covariance"}, ("num_iterations",)),
}
NORM_NAMES = (*_NORMS, "none")

# Options of ours that may stand beside the reference's, which has none like them.
_COMMON = ("dtype", "param_dtype", "group_size", "statistics_sets", "axis_name")


@functools.cache
def norm_options(name: str) -> tuple[str, ...]:
    """The options that :func:`make_norm` accepts for ``name``.

    Raises:
        ValueError: no norm is called ``name``.
    """
    if name == "none":
        return ()
    if name not in _NORMS:
        choices = f"one of {', '.join(NORM_NAMES)}, or the reference's name of one"
        raise ValueError(unknown_name("norm", name, (*NORM_NAMES, *REFERENCE_NORMS), choices=choices))
    layer, decided, unused = _NORMS[name]
    arguments = inspect.signature(inspect.getattr_static(layer, "__init__")).parameters
    return tuple(a for a in arguments if a not in (*decided, *unused, "self", "num_features", "rngs"))


def make_norm(name: str, num_features: int, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """Makes the normalisation layer called ``name``.

    ==============  ==========  ==================================================================================
    name            reference   layer
    ==============  ==========  ==================================================================================
    gw              IGWItN      :class:`GroupWhitening` by Newton iteration
    gw_zca          IGWSVD      :class:`GroupWhitening` by eigendecomposition
    bn              BN          :class:`BatchNorm`
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
