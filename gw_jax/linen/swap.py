"""Exchanging the norms of a Linen model."""

import contextlib
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
from flax import linen, nnx

from gw_jax.errors import shown
from gw_jax.linen.group_whitening import GroupWhitening
from gw_jax.norm_calls import arguments_by_name, call_with, compile_pattern, last_axis_only, listed, require_callable

NORMS = (linen.BatchNorm, linen.LayerNorm, linen.GroupNorm, linen.RMSNorm, linen.InstanceNorm, GroupWhitening)
Model = TypeVar("Model", bound=linen.Module)

_COUNT = itertools.count()


def swap_norms(model: Model, pattern: str, make: Callable[[int], linen.Module]) -> Model:
    """Returns the Linen model with other norms, such as :class:`gw_jax.linen.GroupWhitening`.

    The result is of a subclass of the model's class with the same fields and methods, and so has the same variables:
    ``scale`` and ``bias`` of a new norm stand where those of the old one stood, and the ``params`` of an existing
    checkpoint fit. Running statistics (``batch_stats``) are gone unless the new norm has some.

    Linen makes its layers while it computes, so the exchange takes place in every call of a method of the model
    (``init``, ``apply`` with any ``method``, inside another module), also under ``jax.jit``, ``jax.grad`` and Linen's
    ``jit``, ``remat``, ``scan`` and ``vmap`` of modules that contain norms. A new norm accepts the calls of the old one:
    ``use_running_average``, of the call or the layer, is passed on to a norm that has it, else ignored; ``mask=``, which
    broadcasts to the input in Flax, becomes one entry for every position for :class:`gw_jax.linen.GroupWhitening`, and
    masked positions come out as zero.

    Not replaced are norms that are called from outside of the model's methods, as after ``bound = model.bind(variables)``
    in ``bound.stem_norm(x)``. Where several swaps match a norm, the last one applies.

    Args:
        model: a module that is not bound, as before ``init`` and ``apply``; it is unchanged.
        pattern: regular expression that is searched in paths such as ``"Block_0/BatchNorm_1"``; ``".*"`` for all norms.
        make: makes the new norm for a number of channels, such as ``lambda c: gw_jax.linen.GroupWhitening(num_groups=16)``;
            not a class of Linen, whose first argument is not the number of channels.

    Raises:
        TypeError: the model is no Linen module, ``pattern`` no string, ``make`` not callable.
        ValueError: the pattern is no regular expression. On a call: it matches none of the norms, which are listed;
            ``make`` or the new norm fails for a layer, which is named; the channels of a norm are not on the last axis.

    Example:
        >>> import flax.linen as nn, gw_jax, jax
        >>> model = nn.Sequential([nn.Conv(64, (3, 3)), nn.BatchNorm(use_running_average=False), nn.relu])
        >>> model = gw_jax.linen.swap_norms(model, ".*", lambda c: gw_jax.linen.GroupWhitening(num_groups=16))
        >>> variables = model.init(jax.random.key(0), jax.numpy.ones((2, 8, 8, 3)))
        >>> list(variables), list(variables["params"])
        (['params'], ['layers_0', 'layers_1'])
    """
    compile_pattern(pattern)
    require_callable(make)
    _refuse_class(make)
    if isinstance(model, nnx.Module):
        raise TypeError(f"{type(model).__name__} is a module of flax.nnx; gw_jax.swap_norms is for those.")
    if not isinstance(model, linen.Module):
        raise TypeError(f"model={shown(model)} is of type {type(model).__name__}; swap_norms needs a flax.linen.Module.")
    if model.scope is not None:
        raise ValueError(
            f"This {type(model).__name__} is bound to variables or to a module that is being called. Pass a module that is "
            f"not: outside of @nn.compact methods, or made with {type(model).__name__}(..., parent=None)."
        )
    if isinstance(model, NORMS):
        raise ValueError(f"The model is itself a norm, {type(model).__name__}; swap_norms replaces norms within a model.")
    earlier = getattr(model, "swapped_norms", None)
    base, rules = (type(model), ()) if earlier is None else (earlier.base, earlier.rules)
    swapped = _subclass(base, _Swap(base, (*rules, (pattern, make))))
    fields = {name: getattr(model, name) for name in _field_names(model) if name not in ("parent", "name")}
    return cast(Model, swapped(**fields, name=model.name))


def _refuse_class(make: Any) -> None:
    kind = make.func if isinstance(make, functools.partial) else make
    if isinstance(kind, type) and issubclass(kind, linen.Module):
        first = next(iter(kind.__dataclass_fields__))
        if first != "num_features":
            raise TypeError(
                f"make={shown(make)} would pass the number of channels as {first}. Give a function of the number of "
                f"channels, such as lambda num_features: {kind.__name__}()."
            )


def _field_names(model: linen.Module) -> list[str]:
    return [name for name, field in model.__dataclass_fields__.items() if field.init]


def _subclass(base: type[linen.Module], swap: "_Swap") -> type[linen.Module]:
    """A subclass of ``base`` whose methods run with the norms exchanged.

    Not a module around it: Linen would put the variables one level deeper, and ``method="encode"`` would not be found.
    """

    def exchanged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # Without the attributes of the function, such as nn.compact's mark: the method of the base is that itself.
        @functools.wraps(function, updated=())
        def method(self: linen.Module, *args: Any, **kwargs: Any) -> Any:
            root = None if self.scope is None else self.path
            with swap.exchange(root, require_match=name == "__call__"):
                return function(self, *args, **kwargs)

        del method.__wrapped__
        return method

    def with_functions(function: Callable[..., Any]) -> Callable[..., Any]:
        # A function as method= may call submodules, beside the model's methods.
        @linen.nowrap
        @functools.wraps(function)
        def entry(self: linen.Module, *args: Any, method: Any = None, **kwargs: Any) -> Any:
            with swap.exchange((), require_match=method in (None, "__call__"), nested=False):
                return function(self, *args, method=method, **kwargs)

        return entry

    def post_init(self: Any) -> None:
        base.__post_init__(self)
        if self.scope is not None:
            # A part of the key under which nn.jit keeps what it has traced, with or without other norms. Scopes below
            # inherit it.
            self.scope.flags = self.scope.flags.copy({swap.key: True})

    namespace: dict[str, Any] = {name: exchanged(name, function) for name, function in _own_methods(base).items()}
    namespace |= {name: with_functions(getattr(base, name)) for name in ("apply", "init_with_output")}
    namespace |= {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    namespace |= {"__post_init__": post_init, "swapped_norms": swap}
    return type(base.__name__, (base,), namespace)


def _own_methods(base: type[linen.Module]) -> dict[str, Callable[..., Any]]:
    """The methods of the user's class and its bases: all that Linen's Module does not have, and those it calls."""
    names = {name for kind in base.__mro__ if kind not in linen.Module.__mro__ for name in vars(kind)}
    methods: dict[str, Callable[..., Any]] = {}
    for name in sorted(names):
        function = inspect.getattr_static(base, name)
        hidden = name.startswith("__") and name != "__call__"
        if inspect.isfunction(function) and not hidden and name != "setup" and not hasattr(function, "nowrap"):
            methods[name] = function
    return methods


class _Swap:
    """The exchange of one call of :func:`swap_norms`, with its state while a method of the model runs."""

    def __init__(self, base: type[linen.Module], rules: tuple[tuple[str, Callable[[int], linen.Module]], ...]):
        self.base = base
        self.rules = rules
        self.key = f"gw_jax.swap_norms {next(_COUNT)}"
        self.expressions = [compile_pattern(pattern) for pattern, _ in rules]
        self.state = threading.local()

    @contextlib.contextmanager
    def exchange(self, root: tuple[str, ...] | None, *, require_match: bool, nested: bool = True) -> Iterator[None]:
        """Exchanges norms in the calls of the ``with`` block, unless that is so already (and ``nested``).

        ``root`` is the path of the model, or None without variables.
        """
        running = getattr(self.state, "root", None)
        if root is None or (nested and running is not None):
            yield
            return
        before = dict(vars(self.state))
        vars(self.state).update(root=root, seen={}, matched=set(), replacing=False)
        try:
            # One interceptor serves nested runs, too.
            with linen.intercept_methods(self.intercept) if running is None else contextlib.nullcontext():
                yield
            for index, (pattern, _) in enumerate(self.rules):
                if require_match and index not in self.state.matched:
                    raise ValueError(
                        f"pattern={shown(pattern)} matches none of the norms that were called: "
                        f"{listed(self.state.seen) or 'there are none'}."
                    )
        finally:
            vars(self.state).clear()
            vars(self.state).update(before)

    def intercept(self, call: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        """Calls the new norm in place of a norm whose path matches."""
        state, old = self.state, context.module
        if state.replacing or context.method_name != "__call__" or not isinstance(old, NORMS):
            return call(*args, **kwargs)
        path = "/".join(old.path[len(state.root) :])
        state.seen[path] = old
        matching = [index for index, expression in enumerate(self.expressions) if expression.search(path)]
        if not matching:
            return call(*args, **kwargs)
        state.matched.update(matching)
        state.replacing = True
        try:
            return _call_new(path, old, self.rules[matching[-1]][1], args, kwargs)
        finally:
            state.replacing = False


def _call_new(path: str, old: linen.Module, make: Callable[[int], linen.Module], args: Any, kwargs: Any) -> jax.Array:
    x, given = arguments_by_name(type(old).__call__, args, kwargs)
    num_features = x.shape[-1]
    where = f"{path} ({type(old).__name__} of {num_features} channels)"
    last_axis_only(where, old, x.ndim)
    try:
        new = make(num_features)
    except Exception as error:
        raise ValueError(f"make({num_features}) failed for {where}: {type(error).__name__}: {error}") from error
    if not isinstance(new, linen.Module):
        hint = " That is a module of flax.nnx." if isinstance(new, nnx.Module) else ""
        hint = f" That is a class; call it: {new.__name__}()." if isinstance(new, type) else hint
        raise ValueError(f"make({num_features}) returned {shown(new)} for {where}; it must return a linen.Module.{hint}")
    mode = given.pop("use_running_average", None)
    mode = getattr(old, "use_running_average", None) if mode is None else mode
    changes: dict[str, Any] = {}
    if mode is not None and hasattr(new, "use_running_average"):
        # A mode of its own would contradict the call's.
        given["use_running_average"], changes["use_running_average"] = mode, None
    new = new.clone(parent=old.scope, name=None, **changes)
    masks_positions = (isinstance(old, GroupWhitening), isinstance(new, GroupWhitening))
    try:
        return call_with(new, type(new).__call__, x, given, masks_positions=masks_positions)
    except (TypeError, ValueError) as error:
        raise type(error)(f"The new norm of {where} failed: {error}") from error
