"""Exchanging the norms of any NNX model."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax import linen, nnx

from gw_jax.errors import shown
from gw_jax.nn.batch_norm import BatchNorm
from gw_jax.nn.batch_whitening import BatchWhitening
from gw_jax.nn.frozen_batch_norm import FrozenBatchNorm
from gw_jax.nn.group_whitening import GroupWhitening
from gw_jax.nn.per_sample_norms import GroupNorm, LayerNorm
from gw_jax.nn.swap_call import accept_calls_of
from gw_jax.norm_calls import compile_pattern, last_axis_only, listed, require_callable
from gw_jax.versions import variable_value

_FLAX_NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")
# Flax's, and ours (InstanceNorm is a GroupNorm). Flax got its InstanceNorm after 0.11.
NORMS: tuple[type[nnx.Module], ...] = (
    *(getattr(nnx, name) for name in _FLAX_NORMS if hasattr(nnx, name)),
    BatchNorm, BatchWhitening, FrozenBatchNorm, GroupNorm, GroupWhitening, LayerNorm,
)  # fmt: skip


def swap_norms(model: nnx.Module, pattern: str, make: Callable[[int], nnx.Module]) -> list[str]:
    """Replaces the norms of any NNX model, in place, by others such as :class:`gw_jax.GroupWhitening`.

    Norms are those of Flax (``nnx.BatchNorm``, ``LayerNorm``, ``GroupNorm``, ``RMSNorm``, ``InstanceNorm``), those of this
    package, and subclasses, wherever they stand: attributes, lists, tuples, dicts, ``nnx.List``, ``nnx.Dict``,
    ``nnx.Sequential``. A norm that a model holds in several places is replaced by one in all of them. If one
    layer fails, nothing is changed.

    The new norm keeps the old one's ``scale`` and ``bias`` (the variables themselves, but for
    :class:`gw_jax.nn.FrozenBatchNorm`, which does not train them) where both have them, the running ``mean`` and ``var`` if
    it has both, and ``use_running_average``, as set by ``model.train()`` and ``model.eval()``. It stands at the path of the
    old one and accepts its calls: ``use_running_average=`` is ignored by a norm without running statistics; Flax's
    ``mask=``, which broadcasts to the input, becomes one entry for every position, and masked positions come out as zero
    from norms of this package.

    Args:
        model: the model.
        pattern: regular expression that is searched in paths such as ``"stage1/0/norm1"``; ``".*"`` for all norms. A module
            that is reachable by several paths has the first one of ``nnx.iter_graph``.
        make: makes the new norm for a number of channels, such as ``functools.partial(gw_jax.GroupWhitening, num_groups=16,
            rngs=nnx.Rngs(0))``.

    Returns:
        The paths of the norms that were replaced.

    Raises:
        TypeError: the model is no NNX module, ``pattern`` no string, ``make`` not callable.
        ValueError: the pattern is no regular expression or selects no norm; a norm whose channels are not on the last axis
            or not known; ``make`` fails, as for channels that ``num_groups`` does not divide, or returns no new norm.
            The message names the layer, or lists the norms there are.

    Example:
        >>> import functools, gw_jax
        >>> from flax import nnx
        >>> model = nnx.Sequential(nnx.Conv(3, 64, (3, 3), rngs=nnx.Rngs(0)), nnx.BatchNorm(64, rngs=nnx.Rngs(0)), nnx.relu)
        >>> gw_jax.swap_norms(model, ".*", functools.partial(gw_jax.GroupWhitening, num_groups=16, rngs=nnx.Rngs(0)))
        ['layers/1']
    """
    expression = compile_pattern(pattern)
    _require_model(model)
    require_callable(make)
    modules = {slash_path(path): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)}
    norms = {path: module for path, module in modules.items() if isinstance(module, NORMS)}
    matched = {path: module for path, module in modules.items() if expression.search(path)}
    selected = {path: module for path, module in matched.items() if path in norms}
    if not norms:
        kinds = ", ".join(_FLAX_NORMS)
        raise ValueError(f"This {type(model).__name__} has no norm to swap: no {kinds} of flax.nnx, and none of gw_jax.")
    if not selected:
        others = f"{listed(matched)}, but no norm" if matched else "nothing"
        raise ValueError(
            f"pattern={shown(pattern)} matches {others}. The norms of this {type(model).__name__} are {listed(norms)}."
        )
    if "" in selected:
        raise ValueError(f"The model is itself a norm, {type(model).__name__}; swap_norms replaces norms within a model.")
    replacements: dict[int, nnx.Module] = {}
    known = list(modules.values())
    for path, old in selected.items():
        replacements[id(old)] = new = _replacement(path, old, make, known)
        known.append(new)
    assignments = [a for module in modules.values() for a in _assignments(module, replacements)]
    found = {id(old) for _, _, _, old, _ in assignments} | {
        id(part) for _, _, _, old, _ in assignments if isinstance(old, tuple) for part in _flat(old)
    }
    for path, old in selected.items():
        if id(old) not in found:
            raise ValueError(
                f"{path} is held by an object that cannot be changed; swap_norms knows lists, tuples and dicts."
            )
    _assign_all(assignments)
    return list(selected)


def slash_path(path: tuple[Any, ...]) -> str:
    """The path of a module as ``"stage1/0/norm1"``."""
    return "/".join(str(part) for part in path)


def _require_model(model: object) -> None:
    if isinstance(model, linen.Module):
        raise TypeError(
            f"{type(model).__name__} is a Linen module; gw_jax.linen.swap_norms returns one with other norms. This "
            "swap_norms is for flax.nnx."
        )
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model={shown(model)} is of type {type(model).__name__}; swap_norms needs a flax.nnx.Module.")


def _replacement(path: str, old: nnx.Module, make: Callable[[int], nnx.Module], known: list[nnx.Module]) -> nnx.Module:
    where = f"{path} ({type(old).__name__})"
    num_features = _num_features(where, old)
    where = f"{path} ({type(old).__name__} of {num_features} channels)"
    try:
        new = make(num_features)
    except Exception as error:
        raise ValueError(
            f"make({num_features}) failed for {where}: {type(error).__name__}: {error} Nothing was swapped."
        ) from error
    if not isinstance(new, nnx.Module) or not callable(new):
        hint = " That is a Linen module." if isinstance(new, linen.Module) else ""
        hint = f" That is a class; call it: {new.__name__}(num_features, rngs=rngs)." if isinstance(new, type) else hint
        raise ValueError(f"make({num_features}) returned {shown(new)} for {where}; it must return an nnx.Module.{hint}")
    if any(new is module for module in known):
        raise ValueError(
            f"make({num_features}) returned a module for {where} that stands elsewhere; it must make a new one."
        )
    features = getattr(new, "num_features", num_features)
    if features != num_features:
        raise ValueError(f"make({num_features}) returned a norm of {features} channels for {where}.")
    for name in ("scale", "bias"):
        _keep(old, new, name)
    if all(_fits(old, new, name) for name in ("mean", "var")):
        _keep(old, new, "mean")
        _keep(old, new, "var")
    mode = getattr(old, "use_running_average", None)
    if mode is not None and hasattr(new, "use_running_average"):
        new.use_running_average = mode
    accept_calls_of(type(old), new)
    return new


def _num_features(where: str, norm: nnx.Module) -> int:
    last_axis_only(where, norm)
    parameters = [getattr(norm, name, None) for name in ("scale", "bias")]
    if getattr(norm, "statistics_sets", None) is None:
        parameters.append(getattr(norm, "mean", None))
    shapes = {_shape(parameter) for parameter in parameters if isinstance(parameter, nnx.Variable)}
    num_features: Any
    if isinstance(norm, nnx.GroupNorm):
        num_features = norm.num_groups * norm.group_size
    else:
        num_features = getattr(norm, "num_features", None)
    if not isinstance(num_features, int | np.integer):
        raise ValueError(f"{where} does not know its number of channels; swap_norms needs its attribute num_features.")
    if shapes - {(num_features,)}:
        raise ValueError(
            f"{where} has parameters of shape {sorted(shapes)[-1]} for {num_features} channels, as those of layers that "
            "nnx.vmap made together. Give such a model its norm where it is made."
        )
    return int(num_features)


def _shape(variable: nnx.Variable) -> tuple[int, ...]:
    return tuple(variable_value(variable).shape)


def _fits(old: nnx.Module, new: nnx.Module, name: str) -> bool:
    one, other = getattr(old, name, None), getattr(new, name, None)
    return isinstance(one, nnx.Variable) and isinstance(other, nnx.Variable) and _shape(one) == _shape(other)


def _keep(old: nnx.Module, new: nnx.Module, name: str) -> None:
    if not _fits(old, new, name):
        return
    one, other = getattr(old, name), getattr(new, name)
    if isinstance(one, nnx.BatchStat) != isinstance(other, nnx.BatchStat):
        # Scale and bias of a FrozenBatchNorm are constants, and those of the other norms are trained.
        setattr(new, name, type(other)(variable_value(one)))
    else:
        # The variable and not its value: it may be shared, be of a class of its own, or have a sharding.
        setattr(new, name, one)


# The owner, whether the value is its attribute or its item, name or key, the old value and the new one.
_Assignment = tuple[Any, bool, Any, Any, Any]


def _assignments(module: nnx.Module, replacements: dict[int, nnx.Module]) -> Iterator[_Assignment]:
    """All assignments within one module and the containers that it holds."""
    if id(module) in replacements:
        return
    for name, value in list(vars(module).items()):
        if not name.startswith(("_pytree__", "_object__")):
            yield from _assignments_of(module, True, name, value, replacements)


def _assignments_of(
    owner: Any, is_attribute: bool, key: Any, value: Any, replacements: dict[int, nnx.Module]
) -> Iterator[_Assignment]:
    if id(value) in replacements:
        yield owner, is_attribute, key, value, replacements[id(value)]
    elif isinstance(value, list | dict):
        for inner, entry in list(enumerate(value) if isinstance(value, list) else value.items()):
            yield from _assignments_of(value, False, inner, entry, replacements)
    elif isinstance(value, tuple):
        new = _replaced_tuple(value, replacements)
        if new is not value:
            yield owner, is_attribute, key, value, new
        for inner, entry in enumerate(value):
            if isinstance(entry, list | dict):
                yield from _assignments_of(value, False, inner, entry, replacements)


def _replaced_tuple(value: tuple[Any, ...], replacements: dict[int, nnx.Module]) -> tuple[Any, ...]:
    parts = [
        _replaced_tuple(part, replacements) if isinstance(part, tuple) else replacements.get(id(part), part)
        for part in value
    ]
    if all(new is old for new, old in zip(parts, value, strict=True)):
        return value
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def _flat(value: tuple[Any, ...]) -> Iterator[Any]:
    for part in value:
        if isinstance(part, tuple):
            yield from _flat(part)
        else:
            yield part


def _assign_all(assignments: list[_Assignment]) -> None:
    done: list[_Assignment] = []
    try:
        for assignment in assignments:
            owner, is_attribute, key, _, new = assignment
            _assign(owner, is_attribute, key, new)
            done.append(assignment)
    except BaseException:
        for owner, is_attribute, key, old, _ in reversed(done):
            _assign(owner, is_attribute, key, old)
        raise


def _assign(owner: Any, is_attribute: bool, key: Any, value: Any) -> None:
    if is_attribute:
        setattr(owner, key, value)
    else:
        owner[key] = value
