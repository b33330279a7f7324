"""What the exchange of norms shares between NNX and Linen: path patterns, their errors, and the arguments of a call."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.errors import shown

# Longest list of layers in a message.
SHOWN_LAYERS = 20


def compile_pattern(pattern: object) -> re.Pattern[str]:
    """``pattern`` as a compiled regular expression.

    Raises:
        TypeError: it is no string.
        ValueError: it is no regular expression, such as the glob ``"*"``.
    """
    if not isinstance(pattern, str):
        raise TypeError(
            f"pattern={shown(pattern)} is of type {type(pattern).__name__}; give a regular expression as a string, such as "
            "'stage[34]/.*norm2' ('.*' for every norm)."
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"pattern={shown(pattern)} is no regular expression ({error}). It is searched in paths such as "
            "'stage1/0/norm1'; unlike in a glob, any text is '.*', not '*'."
        ) from error


def listed(layers: Mapping[str, object]) -> str:
    """Paths and types of ``layers``, for a message."""
    names = [f"{path or 'the model itself'} ({type(layer).__name__})" for path, layer in layers.items()]
    more = f" and {len(names) - SHOWN_LAYERS} more" if len(names) > SHOWN_LAYERS else ""
    return ", ".join(names[:SHOWN_LAYERS]) + more


def last_axis_only(where: str, layer: object, ndim: int | None = None) -> None:
    """Raises ValueError if a norm's features are not on the last axis, which ours need.

    Args:
        where: the layer, for the message.
        layer: a norm of Flax or ours.
        ndim: number of the input's axes, where it is known.
    """
    for name in ("axis", "feature_axes"):
        value = getattr(layer, name, -1)
        axes = tuple(value) if isinstance(value, Iterable) else (value,)
        if axes not in ((-1,), (None if ndim is None else ndim - 1,)):
            raise ValueError(f"{where} has {name}={value}; only a norm over the last axis ({name}=-1) can be swapped.")


def require_callable(make: object) -> None:
    """Raises TypeError unless ``make`` is callable."""
    if not callable(make):
        raise TypeError(
            f"make={shown(make)} is of type {type(make).__name__}, which cannot be called; give a function of the number "
            "of channels, such as functools.partial(gw_jax.GroupWhitening, num_groups=16, rngs=rngs)."
        )


def parameters_of(call: Callable[..., Any]) -> tuple[tuple[str, ...], frozenset[str], bool]:
    """The parameters of a ``__call__`` without ``self``: those by position, all of them, and whether it has ``**``."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return (
        tuple(p.name for p in parameters if p.kind in positional),
        frozenset(p.name for p in parameters),
        any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
    )


def arguments_by_name(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The input and the other arguments by name of a call of a norm with the ``__call__`` named ``call``.

    Raises:
        TypeError: more arguments by position than ``call`` has.
    """
    names = parameters_of(call)[0]
    if len(args) > len(names):
        raise TypeError(f"{call.__qualname__} accepts {len(names)} arguments by position; {len(args)} were given.")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return given.pop(names[0]), given


def call_with(
    new: Callable[..., jax.Array],
    signature: Callable[..., Any],
    x: jax.Array,
    given: dict[str, Any],
    *,
    masks_positions: tuple[bool, bool],
) -> jax.Array:
    """Calls a norm with the arguments that were meant for the one it replaced.

    Args:
        new: the bound ``__call__`` of the new norm.
        signature: the same as a function, for its parameters.
        x: the input ``[n, *spatial, c]``.
        given: the other arguments by name. ``relu`` is applied here if ``new`` does not have it.
        masks_positions: whether the mask of the old and of the new norm is ``[n, *spatial]``, as ours; else it broadcasts
            to ``x``, as Flax's.

    Raises:
        TypeError: an argument that ``new`` does not have.
        ValueError: a mask that differs between channels, which ours cannot have.
    """
    _, names, any_keyword = parameters_of(signature)
    relu = bool(given.pop("relu", False))
    if relu and "relu" in names:
        given["relu"], relu = True, False
    mask = given.pop("mask", None)
    if mask is not None:
        given["mask"] = _translate_mask(mask, x, *masks_positions)
    foreign = [] if any_keyword else [name for name in given if name not in names]
    if foreign:
        raise TypeError(
            f"{signature.__qualname__} has no {', '.join(foreign)}, with which the norm that it replaced is called."
        )
    y = new(x, **given)
    return jax.nn.relu(y) if relu else y


def _translate_mask(mask: jax.Array, x: jax.Array, old_positions: bool, new_positions: bool) -> jax.Array:
    if old_positions and not new_positions:
        return jnp.broadcast_to(mask[..., None], x.shape)
    if new_positions and not old_positions:
        if mask.ndim != x.ndim or mask.shape[-1] != 1:
            raise ValueError(
                f"mask has shape {mask.shape} for an input of shape {x.shape}; a swapped norm needs one entry for every "
                f"position, {(*x.shape[:-1], 1)}, since its channels share their positions."
            )
        return jnp.broadcast_to(mask[..., 0], x.shape[:-1])
    return mask
