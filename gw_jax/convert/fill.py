"""Strict assignment of a state dict to arrays: each entry is used, each array filled, each number finite."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gw_jax.convert.entries import COUNTER, Entry
from gw_jax.convert.file_errors import file_errors
from gw_jax.errors import CheckpointError, shown


def fill(
    table: Sequence[Entry], state: dict[str, np.ndarray], shapes: Mapping[str, Any], source: str
) -> dict[str, np.ndarray]:
    """Moves the entries of ``table`` from ``state`` to new arrays.

    Entries are removed from ``state`` on the way, so that the memory of a file in which each has its own is freed.

    Args:
        table: the entries that there must be.
        state: names and values of those that there are.
        shapes: shapes and types of the arrays, by path.
        source: what ``state`` is, for messages.

    Returns:
        The arrays by path, in the order of ``shapes``.

    Raises:
        CheckpointError: an entry is missing, left over, misshapen or not finite, or another constant than the network's.
            Nothing is guessed.
    """
    check_entries(table, state, source)
    by_path: dict[str, list[Entry]] = {path: [] for path in shapes}
    for entry in table:
        if entry.constant is None:
            by_path[entry.path].append(entry)
        else:
            _check_constant(entry.key, entry.constant, state.pop(entry.key), source)
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in shapes.items():
        # Allocated one by one: the memory of entries that are done is used again.
        arrays[path] = _initial_array(path, leaf)
        for entry in by_path[path]:
            if entry.key in state:
                with file_errors(source, entry.key):
                    entry.write(arrays[path], checked(state.pop(entry.key), leaf.dtype, entry.key, source))
    return arrays


def check_entries(table: Sequence[Entry], state: Mapping[str, np.ndarray], source: str) -> None:
    """Raises CheckpointError unless ``state`` has the names and shapes of ``table``, counters apart."""
    expected = {entry.key: entry for entry in table}
    missing = [key for key in expected if key not in state and not key.endswith(COUNTER)]
    extra = [key for key in state if key not in expected and not key.endswith(COUNTER)]
    misshapen = [
        f"{key} is {list(state[key].shape)} and should be {list(entry.shape)}"
        for key, entry in expected.items()
        if key in state and state[key].shape != entry.shape
    ]
    problems = [
        f"{len(keys)} {what}: {listed(keys)}"
        for what, keys in (("missing", missing), ("that the network does not have", extra), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"The entries of {source} do not fit: {'; '.join(problems)}. Check the architecture, the norm and its options."
        )


def _check_constant(key: str, constant: np.ndarray, value: np.ndarray, source: str) -> None:
    if not np.array_equal(value, constant):
        raise CheckpointError(
            f"The entry {shown(key)} of {source} is {shown(value.tolist())}, but it is a constant of the network: "
            f"{shown(constant.tolist())}. A network with another one cannot be converted."
        )


def listed(names: Sequence[str], count: int = 5) -> str:
    """The first ``count`` of ``names``, escaped and shortened, joined by commas."""
    return ", ".join([shown(name)[1:-1] for name in names[:count]] + (["..."] if len(names) > count else []))


def checked(value: np.ndarray, dtype: Any, key: str, source: str) -> np.ndarray:
    """``value`` in the type ``dtype``, which must be able to hold it.

    Raises:
        CheckpointError: NaN, infinite, too large for ``dtype``, or an integer for a floating-point number or the reverse.
    """
    if jnp.issubdtype(value.dtype, jnp.floating) != jnp.issubdtype(dtype, jnp.floating):
        raise CheckpointError(
            f"The entry {shown(key)} of {source} is of type {value.dtype}, and {np.dtype(dtype)} is needed."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        result = value.astype(dtype, copy=False)
    if jnp.issubdtype(dtype, jnp.integer):
        if not np.array_equal(result, value):
            raise CheckpointError(f"The entry {shown(key)} of {source} is {shown(value)}, which is no {np.dtype(dtype)}.")
        return result
    if bad := value.size - np.count_nonzero(np.isfinite(result)):
        raise CheckpointError(
            f"The entry {shown(key)} of {source} holds {bad} values that are NaN or infinite, of {value.size}: the run "
            "that wrote it had diverged. Use an earlier checkpoint."
        )
    return result


def _initial_array(path: str, leaf: Any) -> np.ndarray:
    """A new array for the variable ``path``, shaped like ``leaf``; set where the entries may leave a part of it unset."""
    if path.split(".")[-1] == "matrix":
        # The identity stays where the last group of channels is padded.
        return np.broadcast_to(np.eye(leaf.shape[-1], dtype=leaf.dtype), leaf.shape).copy()
    if path.split(".")[-1] == COUNTER:
        return np.zeros(leaf.shape, leaf.dtype)
    return np.empty(leaf.shape, leaf.dtype)
