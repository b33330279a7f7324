"""The layouts of :mod:`tpu_layouts` for batches: a block has positions of 128 samples, or of eight."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.spec import KernelSpec
from gw_jax.ops.kernels.tpu_math import LANES, SUBLANES
from gw_jax.ops.kernels.tpu_rows import Valid


class SamplesInLanes:
    """Blocks ``[p, c, 128]`` of ``[h, w, c, n]``."""

    samples, takes_mask = LANES, False

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

    def first(self, block: Any, valid: Valid | None = None) -> jax.Array:
        """The first row of every sample of a block, in float32."""
        del valid
        return block[: self._side_by_side].astype(jnp.float32).reshape(LANES, LANES).T

    def tile(self, rows: Sequence[Any], valid: Valid | None = None) -> "TileOfLanes":
        """The rows in memory."""
        del valid
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

    samples, takes_mask = SUBLANES, False

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

    def first(self, block: Any, valid: Valid | None = None) -> jax.Array:
        """The first row of every sample of a block, in float32."""
        del valid
        return block[:1].astype(jnp.float32).reshape(SUBLANES, self.row)

    def tile(self, rows: Sequence[Any], valid: Valid | None = None) -> "TileOfSublanes":
        """The rows in memory."""
        del valid
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
