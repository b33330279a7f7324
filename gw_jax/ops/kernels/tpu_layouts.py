"""The two layouts of images in a TPU's memory, and how kernels read the rows of one sample from a tile of them.

XLA keeps a batch of images, two axes of which fill the sublanes and lanes of memory tiles, in one of two orders. A kernel
accepts arrays in that order, so that XLA copies nothing around it; the transposes here are none in memory::

    SamplesInLanes: [h, w, c, n], c < 128 and n a multiple of 128      SamplesInSublanes: [h, w, n, c], otherwise

       lanes:   n0  n1  ... n127                                          lanes:  c0  c1  ... c127
    position 0, c0                                                     position 0, n0
    position 0, c1                                                     position 0, n1
        ...                                                                ...
    position 1, c0                                                     position 1, n0

On the chip, a tile becomes float32 rows that interleave the samples. A strided load picks those of one sample. Positions
stand side by side in a row of ``SamplesInLanes``, as many as fill its 128 lanes (``r = 128 / c``); a block of so many
positions is square, and is transposed on the chip::

    row          SamplesInLanes                                          SamplesInSublanes
    0            n0:   position 0 (c0 c1 ...) ... position r-1           n0: position 0 (c0 c1 ...)
    1            n1:   position 0             ... position r-1           n1: position 0
    ...
    samples      n0:   position r             ... position 2r-1          n0: position 1
                 samples = 128                                           samples = 8
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.spec import SMALL_MEMORY, KernelName, KernelSpec
from gw_jax.ops.kernels.tpu_math import LANES, SUBLANES


def for_each_sample(do: Callable[[Any], None], samples: int) -> None:
    """Calls ``do(sample)`` in a loop on the chip: copies of its body would take as many times as long to compile."""
    jax.lax.fori_loop(0, samples, lambda sample, _: do(sample), None)


def _is_row(array: Any, sample: Any) -> jax.Array:
    # Of a row wider than 128 lanes, a v4's compiler loads and stores no part where the sample is not known. The array has
    # eight such rows.
    return jax.lax.broadcasted_iota(jnp.int32, array.shape, 0) == sample


def read_row(array: Any, sample: Any) -> jax.Array:
    """One sample's row ``[1, row]`` of an array ``[samples, row]``."""
    from jax.experimental import pallas as pl

    if array.shape[1] <= LANES:
        return array[pl.ds(sample, 1), :]
    return jnp.where(_is_row(array, sample), array[...], 0).sum(0, keepdims=True)


def write_row(array: Any, sample: Any, values: jax.Array) -> None:
    """The opposite of :func:`read_row`."""
    from jax.experimental import pallas as pl

    if array.shape[1] <= LANES:
        array[pl.ds(sample, 1), :] = values
    else:
        array[...] = jnp.where(_is_row(array, sample), values, array[...])


def holds_channel_matrices(channels: int, memory: int) -> bool:
    """Whether the chip has room for matrices between all channels for every sample of a block."""
    return memory > SMALL_MEMORY or channels <= LANES


class SamplesInLanes:
    """Blocks ``[p, c, 128]`` of ``[h, w, c, n]``."""

    samples = LANES

    def __init__(self, spec: KernelSpec):
        self._channels, self._side_by_side = spec.channels, LANES // spec.channels
        self.row = LANES

    @staticmethod
    def supports(n: int, channels: int) -> bool:
        """Whether XLA uses this layout for images of so many samples and channels, and kernels support it."""
        return channels < LANES and LANES % channels == 0 and n % LANES == 0

    @staticmethod
    def unit(channels: int) -> int:
        """A tile has a multiple of so many positions."""
        return SUBLANES * (LANES // channels)

    def to_layout(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c]`` in this layout."""
        n, h, w, c = x.shape
        return x.transpose(1, 2, 3, 0).reshape(h * w, c, n)

    def from_layout(self, stored: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The inverse of :meth:`to_layout`."""
        n, h, w, c = shape
        return stored.reshape(h, w, c, n).transpose(3, 0, 1, 2)

    def block(self, tile: int) -> Any:
        """The specification of the blocks in this layout, in a grid of samples and tiles."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((tile, self._channels, LANES), lambda i, t: (t, 0, i))

    def scratch(self, tile: int) -> list[tuple[int, int]]:
        """The shapes of the float32 memory for the rows of a tile."""
        return [(tile * self._channels, LANES)]

    def to_rows(self, parameter: jax.Array) -> jax.Array:
        """Parameters ``[n, c]``, repeated for the positions of a row."""
        return jnp.tile(parameter, (1, self._side_by_side))

    def sum_rows(self, rows: jax.Array) -> jax.Array:
        """Sums over the positions of a row: ``[n, c]``."""
        return rows.reshape(rows.shape[0], -1, self._channels).sum(1)

    def first(self, block: Any) -> jax.Array:
        """The first row of every sample of a block, in float32."""
        return block[: self._side_by_side].astype(jnp.float32).reshape(LANES, LANES).T

    def tile(self, rows: Sequence[Any]) -> "TileOfLanes":
        """The rows in memory."""
        return TileOfLanes(rows[0], self._channels)


class TileOfLanes:
    """A tile ``[p, c, 128]`` as float32 rows, indexed by sample."""

    def __init__(self, rows: Any, channels: int):
        self._rows, self._channels = rows, channels
        self.count = rows.shape[0] // LANES

    def _each(self, do: Callable[[Any, Any], None]) -> None:
        from jax.experimental import pallas as pl

        side_by_side = LANES // self._channels

        def body(j: Any, _: None) -> None:
            do(pl.ds(j * LANES, LANES), pl.ds(j * side_by_side, side_by_side))

        jax.lax.fori_loop(0, self.count, body, None)

    def load(self, block: Any, shift: jax.Array | None = None, sums: Any = None) -> None:
        """Reads a block, minus ``shift``; adds the rows of every sample to ``sums``, both ``[samples, row]``."""

        def one(rows: Any, positions: Any) -> None:
            values = block[positions].astype(jnp.float32).reshape(LANES, LANES).T
            values = values if shift is None else values - shift
            self._rows[rows, :] = values
            if sums is not None:
                sums[...] += values

        self._each(one)

    def store(self, block: Any, factor: jax.Array | None = None, offset: jax.Array | None = None) -> None:
        """Writes the rows to a block, times ``factor`` and plus ``offset``, both ``[samples, row]``."""

        def one(rows: Any, positions: Any) -> None:
            values = self._rows[rows, :]
            values = values if factor is None else values * factor
            values = values if offset is None else values + offset
            block[positions] = values.T.reshape(LANES // self._channels, self._channels, LANES).astype(block.dtype)

        self._each(one)

    def _rows_of(self, sample: Any) -> Any:
        from jax.experimental import pallas as pl

        return pl.ds(sample, self.count, stride=LANES)

    def __getitem__(self, sample: Any) -> jax.Array:
        return self._rows[self._rows_of(sample), :]

    def __setitem__(self, sample: Any, values: jax.Array) -> None:
        self._rows[self._rows_of(sample), :] = values


class SamplesInSublanes:
    """Blocks ``[p, 8, c]`` of ``[h, w, n, c]``."""

    samples = SUBLANES

    def __init__(self, spec: KernelSpec):
        self.row = spec.channels

    @staticmethod
    def supports(n: int, channels: int) -> bool:
        """Whether XLA uses this layout for images of so many samples and channels, and kernels support it."""
        return n % SUBLANES == 0 and (channels % LANES == 0 or channels == LANES // 2)

    @staticmethod
    def unit(channels: int) -> int:
        """A tile has a multiple of so many positions."""
        del channels
        return 1

    def to_layout(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c]`` in this layout."""
        n, h, w, c = x.shape
        return x.transpose(1, 2, 0, 3).reshape(h * w, n, c)

    def from_layout(self, stored: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The inverse of :meth:`to_layout`."""
        n, h, w, c = shape
        return stored.reshape(h, w, n, c).transpose(2, 0, 1, 3)

    def block(self, tile: int) -> Any:
        """The specification of the blocks in this layout, in a grid of samples and tiles."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((tile, SUBLANES, self.row), lambda i, t: (t, i, 0))

    def scratch(self, tile: int) -> list[tuple[int, int]]:
        """The shapes of the float32 memory for the rows of a tile."""
        return [(tile * SUBLANES, LANES)] * -(-self.row // LANES)

    def to_rows(self, parameter: jax.Array) -> jax.Array:
        """Parameters ``[n, c]``, repeated for the positions of a row."""
        return parameter

    def sum_rows(self, rows: jax.Array) -> jax.Array:
        """Sums over the positions of a row: ``[n, c]``."""
        return rows

    def first(self, block: Any) -> jax.Array:
        """The first row of every sample of a block, in float32."""
        return block[:1].astype(jnp.float32).reshape(SUBLANES, self.row)

    def tile(self, rows: Sequence[Any]) -> "TileOfSublanes":
        """The rows in memory."""
        return TileOfSublanes(rows, self.row)


class TileOfSublanes:
    """A tile ``[p, 8, c]`` as float32 rows, indexed by sample.

    Every 128 channels are an array of their own: a strided load reads 128 lanes.
    """

    def __init__(self, rows: Sequence[Any], channels: int):
        self._rows = rows
        self._lanes = [slice(start, min(start + LANES, channels)) for start in range(0, channels, LANES)]
        self.count = rows[0].shape[0] // SUBLANES

    def load(self, block: Any, shift: jax.Array | None = None, sums: Any = None) -> None:
        """Reads a block, minus ``shift``; adds the rows of every sample to ``sums``, both ``[samples, row]``."""
        for rows, lanes in zip(self._rows, self._lanes, strict=True):
            values = block[:, :, lanes].astype(jnp.float32)
            values = values if shift is None else values - shift[None, :, lanes]
            rows[:, : values.shape[2]] = values.reshape(-1, values.shape[2])
            if sums is not None:
                sums[:, lanes] += values.sum(0)

    def store(self, block: Any, factor: jax.Array | None = None, offset: jax.Array | None = None) -> None:
        """Writes the rows to a block, times ``factor`` and plus ``offset``, both ``[samples, row]``."""
        for rows, lanes in zip(self._rows, self._lanes, strict=True):
            width = lanes.stop - lanes.start
            values = rows[:, :width].reshape(self.count, SUBLANES, width)
            values = values if factor is None else values * factor[None, :, lanes]
            values = values if offset is None else values + offset[None, :, lanes]
            block[:, :, lanes] = values.astype(block.dtype)

    def _rows_of(self, sample: Any) -> Any:
        from jax.experimental import pallas as pl

        return pl.ds(sample, self.count, stride=SUBLANES)

    def __getitem__(self, sample: Any) -> jax.Array:
        widths = [lanes.stop - lanes.start for lanes in self._lanes]
        parts = [rows[self._rows_of(sample), :][:, :width] for rows, width in zip(self._rows, widths, strict=True)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def __setitem__(self, sample: Any, values: jax.Array) -> None:
        for rows, lanes in zip(self._rows, self._lanes, strict=True):
            part = values[:, lanes]
            if part.shape[1] < LANES:  # What is right of the channels is not read.
                part = jnp.concatenate([part, part], axis=1)
            rows[self._rows_of(sample), :] = part


Layout = SamplesInLanes | SamplesInSublanes
LAYOUTS: dict[KernelName, type[Layout]] = {"tpu_lane_tiles": SamplesInLanes, "tpu_sublane_tiles": SamplesInSublanes}


def layout_of(spec: KernelSpec) -> Layout:
    """The layout of a kernel in tiles."""
    return LAYOUTS[spec.kernel](spec)
