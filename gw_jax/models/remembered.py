"""The arguments that made a network: those it remembers, and whether given ones would make it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.errors import ConfigError, one_line, shown
from gw_jax.models.create_model import create_model
from gw_jax.models.creation import RECORD, CreationRecord
from gw_jax.nn import Identity
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.nn.swap import NORMS, slash_path
from gw_jax.norm_calls import listed
from gw_jax.tree import variables

# Attributes of a norm that are no argument of the network, or change no result.
_NOT_COMPARED = ("dtype", "use_running_average", "implementation")


def abstract_model(model_config: Mapping[str, Any], dtype: DTypeLike | None, param_dtype: DTypeLike) -> nnx.Module:
    """The network of ``model_config`` (arguments of :func:`gw_jax.create_model`) with shapes in place of arrays."""
    return create_model(**model_config, dtype=dtype, param_dtype=param_dtype, rngs=AbstractRngs())


def shapes_of(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of arrays by path."""
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def remembered_config(model: nnx.Module) -> dict[str, Any]:
    """The arguments of :func:`gw_jax.create_model` that made ``model``.

    Raises:
        ConfigError: it does not remember them, or it is no longer the network that they make.
    """
    record = getattr(model, RECORD, None)
    if not isinstance(record, CreationRecord):
        if isinstance(getattr(model, "record", None), CreationRecord):
            raise ConfigError("The model is a detector; gw_jax.detection.save_detector writes it.")
        raise ConfigError(
            f"This {type(model).__name__} does not remember how it was made, as networks of gw_jax.create_model and "
            "gw_jax.load_pretrained do. Pass the arguments of create_model as model_config."
        )
    if not isinstance(record.arguments["name"], str):
        raise ConfigError(
            f"The network was made from an {type(record.arguments['name']).__name__} and not by name; load_pretrained "
            "makes networks by name only. See gw_jax.list_models()."
        )
    expected = abstract_model(record.arguments, record.dtype, record.param_dtype or jnp.float32)
    advice = "If a whole new network with its arrays is meant, pass its arguments as model_config."
    require_unchanged(model, expected, f"create_model({shown(record.arguments, 300)})", advice)
    return record.arguments


def require_unchanged(model: nnx.Module, expected: nnx.Module, maker: str, advice: str) -> None:
    """Raises ConfigError, with ``advice``, if ``model`` is not ``expected``, the abstract network of the call ``maker``."""
    if _graph(model) != _graph(expected) or shapes_of(variables(model)) != shapes_of(variables(expected)):
        changed = changed_norms(model, expected)
        raise ConfigError(
            f"The network was changed after {maker}, so these arguments do not make it again"
            f"{f': other norms are {listed(changed)}' if changed else ''}. {advice}"
        )


def require_config_of(model: nnx.Module, model_config: Mapping[str, Any]) -> None:
    """Raises ConfigError if ``model_config`` makes another network than ``model``: other arrays, or other norms.

    A norm of another kind often has the same parameters, and would load without an error.
    """
    try:
        expected = abstract_model(model_config, None, jnp.float32)
    except Exception as error:
        raise ConfigError(
            f"create_model({shown(dict(model_config), 300)}) makes no network: {one_line(str(error), 300)}"
        ) from error
    if changed := changed_norms(model, expected):
        raise ConfigError(
            f"model_config={shown(dict(model_config), 300)} makes another network than the one to save: other norms are "
            f"{listed(changed)}. Networks whose norms were swapped for ones that create_model cannot place cannot be saved "
            "this way; save gw_jax.tree.variables(model) and repeat swap_norms after loading."
        )
    here, there = shapes_of(variables(model)), shapes_of(variables(expected))
    if wrong := sorted(path for path in {*here, *there} if here.get(path) != there.get(path)):
        raise ConfigError(
            f"model_config={shown(dict(model_config), 300)} makes another network than the one to save: "
            f"{', '.join(wrong[:5])} are missing, left over or of another shape ({len(wrong)} in all)."
        )


def _graph(model: nnx.Module) -> nnx.GraphDef:
    """The static part of ``model`` in evaluation mode."""
    copy = nnx.merge(*nnx.split(model))
    copy.eval()
    return nnx.split(copy)[0]


def changed_norms(model: nnx.Module, expected: nnx.Module) -> dict[str, nnx.Module]:
    """The norms of ``model`` by path that are not those of ``expected``: of another kind or with other options."""
    there = _norms(expected)
    return {
        path: norm
        for path, norm in _norms(model).items()
        if path not in there or type(norm) is not type(there[path]) or _options(norm) != _options(there[path])
    }


def _norms(model: nnx.Module) -> dict[str, nnx.Module]:
    kinds: tuple[type[nnx.Module], ...] = (*NORMS, Identity)
    return {slash_path(path): node for path, node in nnx.iter_graph(model) if isinstance(node, kinds)}


def _options(norm: nnx.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(norm).items()
        if not name.startswith(("_pytree__", "_object__"))
        and name not in _NOT_COMPARED
        and not isinstance(value, nnx.Variable)
    }
