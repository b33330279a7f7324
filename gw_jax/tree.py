"""Nested dicts and models as flat dicts: leaves by path, such as "stage1.0.conv1.kernel"."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def variables(model: nnx.Module) -> dict[str, Any]:
    """All parameters and running statistics of ``model`` by path. Of an abstract model: their shapes and types."""
    return by_path(nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by path, keys joined by dots."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """``tree`` with ``function(path, leaf)`` in place of its leaves."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
