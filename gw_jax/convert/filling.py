"""Entries of a state dict into arrays, strictly: each is used, each array is filled, each number is finite."""

import concurrent.futures
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gw_jax.convert.layout import COUNTER, Entry
from gw_jax.errors import CheckpointError


def fill(table: list[Entry], state: dict[str, np.ndarray], shapes: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """All arrays of :func:`stream`, by path."""
    return dict(stream(table, state, shapes, source))


def stream(
    table: list[Entry], state: dict[str, np.ndarray], shapes: Mapping[str, Any], source: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Moves every entry of ``table`` out of ``state`` into new arrays of the given ``shapes`` (and types).

    Gives paths and arrays in the order of ``shapes``, each as soon as it is done. Entries leave ``state`` on the way, so
    that memory is needed once. Names and shapes are checked at once, values when their turn comes.

    Raises:
        CheckpointError: an entry is missing, left over, misshapen or not finite. Nothing is guessed.
    """
    wanted = {entry.key: entry for entry in table}
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTER)]
    extra = [key for key in state if key not in wanted and not key.endswith(COUNTER)]
    misshapen = [
        f"{key} is {list(state[key].shape)} and should be {list(entry.shape)}"
        for key, entry in wanted.items()
        if key in state and state[key].shape != entry.shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("that the network does not have", extra), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"The entries of {source} do not fit: {'; '.join(problems)}. Check the architecture, the norm and its options."
        )
    by_path: dict[str, list[Entry]] = {path: [] for path in shapes}
    for entry in table:
        by_path[entry.path].append(entry)

    def fill_variable(path: str) -> np.ndarray:
        # Allocated here, one by one: the memory of entries that are done is used again.
        array = initial_array(path, shapes[path])
        for entry in by_path[path]:
            value = state.pop(entry.key, None)
            if value is None:
                continue
            if bad := value.size - np.count_nonzero(np.isfinite(value)):
                raise CheckpointError(
                    f"The entry {entry.key!r} of {source} holds {bad} values that are NaN or infinite, of {value.size}: "
                    "the run that wrote it had diverged. Take an earlier checkpoint."
                )
            entry.put(array, value)
        return array

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        # Changing the order of axes is bound by memory, and NumPy lets go of the interpreter meanwhile.
        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
            yield from zip(by_path, pool.map(fill_variable, by_path), strict=True)

    return arrays()


def initial_array(path: str, leaf: Any) -> np.ndarray:
    """A new array for the variable ``path``, shaped like ``leaf``; set where the entries may leave a part of it alone."""
    if path.split(".")[-1] == "matrix":
        # The identity stays where the last group of channels is padded.
        return np.broadcast_to(np.eye(leaf.shape[-1], dtype=leaf.dtype), leaf.shape).copy()
    if path.split(".")[-1] == COUNTER:
        return np.zeros(leaf.shape, leaf.dtype)
    return np.empty(leaf.shape, leaf.dtype)
