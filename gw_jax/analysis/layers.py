"""The layers of a model that are norms, by path, and what is measured at each of them."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gw_jax import linen as gw_linen
from gw_jax import nn
from gw_jax.analysis.spectrum import Moments, Per, check_activations, machine_epsilon, moments
from gw_jax.errors import shown
from gw_jax.norm_calls import parameters_of

Kinds = type | tuple[type, ...]
WHITENING = (nn.GroupWhitening, gw_linen.GroupWhitening)
MOST_LISTED = 30


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of an analysis. They are a key of ``jax.jit``'s cache."""

    pattern: re.Pattern[str]
    per: Per
    num_groups: int | Literal["channels"] | None
    affine: bool
    keep_covariance: bool
    kinds: tuple[type, ...]
    call: Callable[[Any, jax.Array], Any] | None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["before", "after"],
    meta_fields=["path", "kind", "features", "variables", "epsilon"],
)
@dataclasses.dataclass
class Measured:
    """Moments of the input and the output of one call of a layer."""

    path: str
    kind: str
    features: int
    variables: int
    epsilon: float
    before: Moments
    after: Moments


class Recorder:
    """Collects what is measured while a model is traced, in the order of the calls."""

    def __init__(self, options: Options, batch_size: int):
        self.options = options
        self.batch_size = batch_size
        self.measured: list[Measured] = []
        self.seen: list[str] = []

    def record(self, path: str, layer: Any, y: jax.Array, positional: Sequence[Any], arguments: Mapping[str, Any]) -> None:
        """Measures input and output ``y`` ``[n, *spatial, c]`` of a call of ``layer``.

        Raises:
            ValueError: they do not fit the options; the message names the layer.
        """
        per, name = self.options.per, f"{path or 'the model itself'} ({kind_of(layer)})"
        x = positional[0] if positional else next(iter(arguments.values()))
        if x.ndim < 2 or x.shape[0] != self.batch_size or x.shape != y.shape:
            raise ValueError(
                f"{name} maps shape {x.shape} to {y.shape} for a batch of {self.batch_size} images; an analysis needs "
                f"[{self.batch_size}, *spatial, c] on both sides. Images need a batch axis: [n, h, w, c]."
            )
        try:
            mask = mask_of(layer, x, positional, arguments)
            groups = check_activations(x, per, self._groups(layer, x.shape[-1]), mask)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        calls = sum(path == earlier for earlier in self.seen)
        self.seen.append(path)
        label = path if calls == 0 else f"{path} (call {calls + 1})"
        smaller = not self.options.keep_covariance
        before, after = (moments(values, per, groups, mask, smaller) for values in (x, y))
        self.measured.append(Measured(label, kind_of(layer), x.shape[-1], groups, machine_epsilon(x), before, after))

    def _groups(self, layer: Any, channels: int) -> int | None:
        requested = self.options.num_groups
        if requested == "channels":
            return None
        if requested is not None or self.options.per == "batch" or not isinstance(layer, WHITENING):
            return requested
        # The Linen layer reads its channels from the input.
        per_group = getattr(layer, "channels_per_group", None)
        return min(layer.num_groups, channels) if per_group is None else channels // per_group


def kind_of(layer: Any) -> str:
    """The name of a layer's class; of a swapped norm, that of the class it adapts."""
    kind = type(layer)
    return (kind.__mro__[1] if hasattr(kind, "accepts_calls_of") else kind).__name__


def bare_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a norm's call, without the ReLU that it applies for its network."""
    return arguments | {"relu": False} if arguments.get("relu") else arguments


def mask_of(layer: Any, x: jax.Array, positional: Sequence[Any], arguments: Mapping[str, Any]) -> jax.Array | None:
    """The mask of positions ``[n, *spatial]`` of a norm's call, or None.

    Raises:
        ValueError: it differs between channels, as those of Flax may.
    """
    names = parameters_of(getattr(type(layer), "accepts_calls_of", type(layer)).__call__)[0]
    mask = dict(zip(names, positional, strict=False)).get("mask", arguments.get("mask"))
    if mask is None or mask.shape == x.shape[:-1]:
        return mask
    if mask.ndim != x.ndim or mask.shape[-1] != 1:
        raise ValueError(f"A mask of shape {mask.shape} for {x.shape}, which may differ between channels, is not analysed.")
    return jnp.broadcast_to(mask[..., 0], x.shape[:-1])


def named_children(node: Any) -> Iterator[tuple[str, Any]]:
    """The attributes or elements of a module or a container, by name."""
    if isinstance(node, Mapping):
        yield from ((str(key), value) for key, value in node.items())
    elif isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        yield from ((str(index), value) for index, value in enumerate(node))
    elif isinstance(node, nnx.Module):
        yield from (item for item in vars(node).items() if not item[0].startswith(("_pytree__", "_object__")))


def nnx_modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """All modules of an NNX model by slash path, such as "stage1/0/norm1". A shared one has several paths."""
    found: dict[str, nnx.Module] = {}

    def visit(path: tuple[str, ...], node: Any, above: tuple[int, ...]) -> None:
        if id(node) in above:
            return
        if isinstance(node, nnx.Module) and not isinstance(node, (Sequence, Mapping)):
            found["/".join(path)] = node
        for name, child in named_children(node):
            if isinstance(child, (nnx.Module, list, tuple, dict)):
                visit((*path, name), child, (*above, id(node)))

    visit((), model, ())
    return found


def select(paths: Mapping[str, Any], options: Options) -> dict[int, tuple[str, Any]]:
    """The layers to measure: by ``id``, the first path that the pattern matches, and the layer.

    Raises:
        ValueError: no layer is of the right kind, or no such layer's path matches.
    """
    norms = {path: layer for path, layer in paths.items() if isinstance(layer, options.kinds)}
    chosen: dict[int, tuple[str, Any]] = {}
    for path, layer in norms.items():
        if options.pattern.search(path):
            chosen.setdefault(id(layer), (path, layer))
    if not chosen:
        raise_no_layer(norms, list(paths), options)
    return chosen


def raise_no_layer(norms: Mapping[str, Any], paths: Sequence[str], options: Options) -> None:
    """Raises the ValueError for a model in which nothing is to be measured."""
    kinds = ", ".join(sorted({kind.__name__ for kind in options.kinds}))
    if not norms:
        raise ValueError(
            f"The model has no layer of the kinds {kinds}. Its modules are {listed(paths)}. Name the classes to analyse "
            "with kinds=, such as kinds=MyNorm."
        )
    raise ValueError(
        f"pattern={shown(options.pattern.pattern)} matches none of the paths of the model's norms: {listed(norms)}."
    )


def listed(paths: Any) -> str:
    """Paths for a message; of many, the first ones."""
    names = [path or "(the model itself)" for path in paths]
    more = f", and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def require_batch_axis(images: jax.Array, conv: Any, ndim: int) -> None:
    """Raises ValueError if a convolution of two spatial axes gets ``ndim`` axes: Flax takes three as one image."""
    if ndim == 3 and not isinstance(conv.kernel_size, int) and len(conv.kernel_size) == 2:
        raise ValueError(
            f"images have shape {images.shape}, and the model has convolutions of two spatial axes; give [n, h, w, c], "
            "such as images[None] for one image."
        )


def without_affine(layer: nnx.Module, run: Callable[[], jax.Array]) -> jax.Array:
    """``run()``, a call of ``layer``, with a scale of one and a bias of zero."""
    parameters = [(name, getattr(layer, name, None)) for name in ("scale", "bias")]
    kept = [(name, variable, variable[...]) for name, variable in parameters if isinstance(variable, nnx.Variable)]
    try:
        for name, variable, value in kept:
            variable[...] = jnp.ones_like(value) if name == "scale" else jnp.zeros_like(value)
        return run()
    finally:
        for _, variable, value in kept:
            variable[...] = value
