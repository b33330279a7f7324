"""Calls of a model's layers, observed while JAX traces the model. Neither the model nor its state changes."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen, nnx

from gw_jax.analysis.layers import (
    Measured,
    Options,
    Recorder,
    bare_arguments,
    nnx_modules,
    raise_no_layer,
    require_batch_axis,
    select,
    without_affine,
)

_patching = threading.RLock()


def measure_nnx(model: nnx.Module, images: jax.Array, options: Options) -> tuple[Measured, ...]:
    """Measures the chosen layers of an NNX model, in the order of their calls.

    A copy of the model runs inside ``jax.jit``: running statistics and random generators of ``model`` stay as they are, and
    XLA frees every activation once its covariance is computed. The compiled program is kept for the next call.
    """
    graphdef, state = nnx.split(model)
    try:
        hash(graphdef)
    except TypeError:  # A model with an attribute such as a NumPy array; it is compiled for this call only.
        return jax.jit(functools.partial(_run_nnx, graphdef, options))(state, images)
    return _compiled_nnx(graphdef, options, state, images)


def _run_nnx(graphdef: Any, options: Options, state: Any, images: jax.Array) -> tuple[Measured, ...]:
    model = nnx.merge(graphdef, state)
    chosen = select(nnx_modules(model), options)
    recorder = Recorder(options, images.shape[0])
    with _observed(chosen, recorder):
        if options.call is None:
            model(images)
        else:
            options.call(model, images)
    return tuple(recorder.measured)


_compiled_nnx = jax.jit(_run_nnx, static_argnums=(0, 1))


@contextlib.contextmanager
def _observed(chosen: dict[int, tuple[str, Any]], recorder: Recorder) -> Iterator[None]:
    """Within it, calls of the chosen layers are recorded.

    Python looks ``__call__`` up in the class, so the classes of the layers get another one for the time of a trace. It
    leaves all other objects of the class alone.
    """
    inside: set[int] = set()

    def observing(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(layer: Any, *positional: Any, **arguments: Any) -> Any:
            if id(layer) not in chosen or id(layer) in inside:
                return original(layer, *positional, **arguments)
            inside.add(id(layer))
            try:
                y = original(layer, *positional, **arguments)
                bare = bare_arguments(arguments)
                run = functools.partial(original, layer, *positional, **bare)
                measured = y
                if not recorder.options.affine:
                    measured = without_affine(layer, run)
                elif bare is not arguments:
                    measured = run()
            finally:
                inside.discard(id(layer))
            recorder.record(chosen[id(layer)][0], layer, measured, positional, arguments)
            return y

        return call

    classes = {type(layer) for _, layer in chosen.values()}
    with _patching, contextlib.ExitStack() as stack:
        # All originals first: a class may inherit from another of them.
        originals = {cls: cls.__call__ for cls in classes}
        for cls, original in originals.items():
            stack.callback(_restore, cls, vars(cls).get("__call__"))
            cls.__call__ = observing(original)
        yield


def _restore(cls: Any, own: Callable[..., Any] | None) -> None:
    if own is None:
        del cls.__call__  # It was inherited.
    else:
        cls.__call__ = own


def measure_linen(
    model: linen.Module, variables: Any, images: jax.Array, options: Options, rngs: Any
) -> tuple[Measured, ...]:
    """Measures the chosen layers of a Linen model, in the order of their calls. Updates of its variables are dropped."""
    try:
        hash(model)
    except TypeError:  # A module that holds a list, such as linen.Sequential([...]), is compiled anew in every call.
        return jax.jit(functools.partial(_run_linen, model, options))(variables, images, rngs)
    return _compiled_linen(model, options, variables, images, rngs)


def _run_linen(model: linen.Module, options: Options, variables: Any, images: jax.Array, rngs: Any) -> tuple[Measured, ...]:
    recorder = Recorder(options, images.shape[0])
    paths: dict[str, linen.Module] = {}
    busy: list[None] = []

    def observe(next_call: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any], context: Any) -> Any:
        layer: Any = context.module
        if busy or context.method_name != "__call__":
            return next_call(*positional, **arguments)
        path = "/".join(layer.path)
        paths[path] = layer
        if isinstance(layer, linen.Conv) and positional:
            require_batch_axis(images, layer, positional[0].ndim)
        if not isinstance(layer, options.kinds) or not options.pattern.search(path):
            return next_call(*positional, **arguments)
        calls = len(recorder.seen)
        y = next_call(*positional, **arguments)
        if path in recorder.seen[calls:]:
            return y  # A norm that gw_jax.linen.swap_norms has put in the place of this one.
        bare = bare_arguments(arguments)
        measured = y
        if bare is not arguments or not options.affine:
            busy.append(None)
            try:
                measured = _repeat(layer, options.affine, positional, bare)
            finally:
                busy.pop()
        recorder.record(path, layer, measured, positional, arguments)
        return y

    with linen.intercept_methods(observe):
        call = options.call or (lambda bound, images: bound(images))
        linen.apply(call, model, mutable=linen.DenyList("params"))(variables, images, rngs=rngs)
    if not recorder.measured:
        norms = {path: layer for path, layer in paths.items() if isinstance(layer, options.kinds)}
        raise_no_layer(norms, list(paths), options)
    return tuple(recorder.measured)


_compiled_linen = jax.jit(_run_linen, static_argnums=(0, 1))


def _repeat(layer: Any, affine: bool, positional: tuple[Any, ...], arguments: dict[str, Any]) -> jax.Array:
    """The output of another call of a bound layer, with its scale and bias or without them."""
    changes = {} if affine else {name: False for name in ("use_scale", "use_bias") if hasattr(layer, name)}
    variables = dict(layer.variables)
    if not affine:
        variables.pop("params", None)
    copy: Any = layer.clone(parent=None, name=None, **changes)
    y, _ = copy.apply(variables, *positional, mutable=linen.DenyList("params"), **arguments)
    return y
