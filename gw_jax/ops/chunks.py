"""Computing in chunks of the first axis, so that memory does not grow with its length."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Of the largest array that is made for one chunk.
CHUNK_BYTES = 64 * 2**20


def map_chunks(function: Callable[..., jax.Array], bytes_per_row: int, *arrays: jax.Array) -> jax.Array:
    """``function`` of chunks of the first axis of ``arrays``, joined; the last chunk is padded with zeros."""
    count = arrays[0].shape[0]
    chunks, rows = _chunks(count, bytes_per_row)
    if chunks == 1:
        return function(*arrays)
    result = jax.lax.map(lambda chunk: function(*chunk), tuple(_split(array, chunks, rows) for array in arrays))
    return result.reshape(chunks * rows, *result.shape[2:])[:count]


def sum_chunks(
    function: Callable[..., tuple[jax.Array, ...]], total: tuple[jax.Array, ...], bytes_per_row: int, *arrays: jax.Array
) -> tuple[jax.Array, ...]:
    """``function(total, *chunk)`` one chunk after the other, each with the last one's result."""
    chunks, rows = _chunks(arrays[0].shape[0], bytes_per_row)
    if chunks == 1:
        return function(total, *arrays)
    split = tuple(_split(array, chunks, rows) for array in arrays)
    return jax.lax.scan(lambda total, chunk: (function(total, *chunk), None), total, split)[0]


def _chunks(count: int, bytes_per_row: int) -> tuple[int, int]:
    """Number of chunks, and rows per chunk, for ``count`` rows."""
    most = max(1, CHUNK_BYTES // bytes_per_row)
    chunks = max(1, -(-count // most))
    return chunks, -(-count // chunks)


def _split(array: jax.Array, chunks: int, rows: int) -> jax.Array:
    padding = [(0, chunks * rows - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(chunks, rows, *array.shape[1:])
