"""Normalisation layers by name, so that a network's norm is a line of its configuration."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from gw_jax.nn.batch_norm import BatchNorm
from gw_jax.nn.group_norm import GroupNorm
from gw_jax.nn.group_whitening import GroupWhitening


class Identity(nnx.Module):
    """Returns its input: the norm called "none"."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Returns ``x``; ``mask`` is accepted as by the other norms and not used."""
        del mask
        return x


def _newton(num_features: int, **options: Any) -> GroupWhitening:
    return GroupWhitening(num_features, method="newton", **options)


def _zca(num_features: int, **options: Any) -> GroupWhitening:
    return GroupWhitening(num_features, method="zca", **options)


# name: (constructor, the class whose arguments are the options, arguments that the name itself decides)
_NORMS: dict[str, tuple[Callable[..., nnx.Module], type, tuple[str, ...]]] = {
    "gw": (_newton, GroupWhitening, ("method",)),
    "gw_zca": (_zca, GroupWhitening, ("method", "num_iterations")),
    "bn": (BatchNorm, BatchNorm, ()),
    "gn": (GroupNorm, GroupNorm, ()),
}
NORM_NAMES = (*_NORMS, "none")


def norm_options(name: str) -> tuple[str, ...]:
    """The options that :func:`make_norm` takes for ``name``.

    Raises:
        ValueError: no norm is called ``name``.
    """
    if name == "none":
        return ()
    if name not in _NORMS:
        close = difflib.get_close_matches(name, NORM_NAMES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"No normalisation is called {name!r}; choose one of {', '.join(NORM_NAMES)}.{hint}")
    _, layer, decided = _NORMS[name]
    arguments = inspect.signature(inspect.getattr_static(layer, "__init__")).parameters
    return tuple(a for a in arguments if a not in (*decided, "self", "num_features", "rngs"))


def make_norm(name: str, num_features: int, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """Makes the normalisation layer called ``name``.

    ========  ==========================================================
    gw        :class:`GroupWhitening` by Newton iteration
    gw_zca    :class:`GroupWhitening` by eigendecomposition
    bn        :class:`BatchNorm`
    gn        :class:`GroupNorm`
    none      the identity, which takes no options
    ========  ==========================================================

    All of them are called as ``norm(x, mask=None)`` on ``x`` ``[n, *spatial, num_features]``.

    Args:
        name: one of the names above.
        num_features: channels of the input.
        rngs: the generators of the parameters.
        **options: keyword arguments of the layer.

    Raises:
        ValueError: an unknown name, or an option that the layer does not have; the message lists the known ones.
    """
    allowed = norm_options(name)
    if name == "none":
        # One set of options often serves several norms' common arguments.
        options = {key: value for key, value in options.items() if key not in ("dtype", "param_dtype")}
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise ValueError(f"The normalisation {name!r} has no option {unknown}; it takes {', '.join(allowed) or 'none'}.")
    if name == "none":
        return Identity()
    return _NORMS[name][0](num_features, rngs=rngs, **options)
