"""The rows of samples on a TPU's chip, and what a mask says of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.spec import SMALL_MEMORY
from gw_jax.ops.kernels.tpu_math import LANES


@dataclasses.dataclass(frozen=True)
class Valid:
    """References to what a mask says of one sample.

    Attributes:
        mask: of a tile, ``[p, w]`` up to whole memory tiles; one where a position counts and zero elsewhere.
        count: observations per group, at least 1, in a row ``[1, row]``.
        first: the values of the first position that counts ``[1, row]``, or zeros.
    """

    mask: Any
    count: Any
    first: Any


def for_each_sample(do: Callable[[Any], None], samples: int) -> None:
    """Calls ``do(sample)`` in a loop on the chip: copies of its body would take as many times as long to compile."""
    if samples == 1:
        do(0)
        return
    jax.lax.fori_loop(0, samples, lambda sample, _: do(sample), None)


def _is_row(array: Any, sample: Any) -> jax.Array:
    # Of a row wider than 128 lanes, a v4's compiler loads and stores no part where the sample is not known. The array has
    # eight such rows.
    return jax.lax.broadcasted_iota(jnp.int32, array.shape, 0) == sample


def read_row(array: Any, sample: Any) -> jax.Array:
    """One sample's row ``[1, row]`` of an array ``[samples, row]``."""
    from jax.experimental import pallas as pl

    if array.shape[0] == 1:
        return array[...]
    if array.shape[1] <= LANES:
        return array[pl.ds(sample, 1), :]
    return jnp.where(_is_row(array, sample), array[...], 0).sum(0, keepdims=True)


def write_row(array: Any, sample: Any, values: jax.Array) -> None:
    """The opposite of :func:`read_row`."""
    from jax.experimental import pallas as pl

    if array.shape[0] == 1:
        array[...] = values
    elif array.shape[1] <= LANES:
        array[pl.ds(sample, 1), :] = values
    else:
        array[...] = jnp.where(_is_row(array, sample), values, array[...])


def holds_channel_matrices(channels: int, memory: int) -> bool:
    """Whether the chip has room for matrices between all channels for every sample of a block."""
    return memory > SMALL_MEMORY or channels <= LANES
