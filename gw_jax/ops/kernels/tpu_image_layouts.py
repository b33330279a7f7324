"""The layouts of :mod:`tpu_layouts` for few large images: blocks have positions of one, and a mask says which count."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.spec import KernelSpec
from gw_jax.ops.kernels.tpu_math import LANES, SUBLANES
from gw_jax.ops.kernels.tpu_rows import Valid


class _OneImage:
    """What both layouts have in common."""

    samples, takes_mask = 1, True

    def __init__(self, spec: KernelSpec):
        self._channels, self._columns = spec.channels, spec.columns

    def mask(self, mask: jax.Array, tile: int) -> jax.Array:
        """``[n, h, w]`` in float32, and zeros up to whole tiles."""
        _, h, w = mask.shape
        return jnp.pad(mask.astype(jnp.float32), ((0, 0), (0, _round_up(h, tile) - h), (0, _round_up(w, LANES) - w)))

    def mask_block(self, tile: int) -> Any:
        """The specification of the blocks of a mask."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((None, tile, _round_up(self._columns, LANES)), lambda i, t: (i, t, 0))

    def first(self, block: Any, valid: Valid | None = None) -> jax.Array:
        """The row of the first position that counts, in float32."""
        del block
        assert valid is not None
        return valid.first[...]


class _TileInMemory:
    """Float32 rows of one sample."""

    def __init__(self, rows: Any, mask: Any):
        self._rows, self._mask = rows, mask

    def __getitem__(self, sample: Any) -> jax.Array:
        del sample
        return self._rows[...]

    def __setitem__(self, sample: Any, values: jax.Array) -> None:
        del sample
        self._rows[...] = values


class PositionsInSublanes(_OneImage):
    """Blocks ``[p, w, c]`` of ``[n, h, w, c]``: ``p`` rows of an image, each of whole memory tiles."""

    def __init__(self, spec: KernelSpec):
        super().__init__(spec)
        self.row = spec.channels

    @staticmethod
    def supports(n: int, channels: int) -> bool:
        """Whether XLA uses this layout for images of so many samples and channels, and kernels support it."""
        return n > 0 and channels % (LANES // 2) == 0

    @staticmethod
    def unit(channels: int) -> int:
        """A tile has a multiple of so many rows of the image."""
        del channels
        return SUBLANES

    @staticmethod
    def values(columns: int, channels: int) -> int:
        """Values of a row of the image on the chip."""
        return _round_up(columns, SUBLANES) * max(channels, LANES)

    def to_layout(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c]`` in this layout."""
        return x

    def from_layout(self, stored: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The inverse of :meth:`to_layout`."""
        del shape
        return stored

    def block(self, tile: int) -> Any:
        """The specification of the blocks in this layout, in a grid of samples and tiles."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((None, tile, _round_up(self._columns, SUBLANES), self.row), lambda i, t: (i, t, 0, 0))

    def values_at(self, image: jax.Array, place: jax.Array) -> jax.Array:
        """The values ``[c]`` at a position of one stored image, of which ``place`` is the number."""
        start = place // self._columns, place % self._columns, 0
        return jax.lax.dynamic_slice(image, start, (1, 1, self.row)).reshape(self.row)

    def scratch(self, tile: int) -> list[tuple[int, int]]:
        """The shapes of the float32 memory for the rows of a tile."""
        return [(tile * _round_up(self._columns, SUBLANES), self.row)]

    def to_rows(self, parameter: jax.Array) -> jax.Array:
        """Parameters ``[n, c]``: an axis of one sample per block can't be the second last."""
        return parameter[:, None]

    def sum_rows(self, rows: jax.Array) -> jax.Array:
        """The inverse of :meth:`to_rows`."""
        return rows[:, 0]

    def tile(self, rows: Sequence[Any], valid: Valid | None = None) -> "TileOfPositions":
        """The rows in memory."""
        assert valid is not None
        return TileOfPositions(rows[0], valid.mask)


class TileOfPositions(_TileInMemory):
    """A tile ``[p, w, c]`` of one sample as float32 rows, which are zero where its mask is."""

    def __init__(self, rows: Any, mask: Any):
        super().__init__(rows, mask)
        channels = rows.shape[1]
        self._lanes = [slice(start, min(start + LANES, channels)) for start in range(0, channels, LANES)]

    def _each(self, do: Callable[[Any, Any, jax.Array, slice], None]) -> None:
        """Calls ``do`` with up to 128 rows, their place in the image, whether each counts, and up to 128 channels."""
        from jax.experimental import pallas as pl

        width = self._rows.shape[0] // self._mask.shape[0]
        together = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 0)

        def body(j: Any, _: None) -> None:
            # A row of the mask whose number is not known is read in whole memory tiles.
            tile = pl.ds(pl.multiple_of(jax.lax.div(j, SUBLANES) * SUBLANES, SUBLANES), SUBLANES)
            is_row = together == jax.lax.rem(j, SUBLANES)
            for start in range(0, width, LANES):
                size = min(LANES, width - start)
                row = jnp.where(is_row, self._mask[tile, start : start + LANES], 0.0).sum(0, keepdims=True)
                counts = jnp.broadcast_to(row, (LANES, LANES)).T[:size] > 0
                rows = pl.ds(pl.multiple_of(j * width + start, SUBLANES), size)
                for lanes in self._lanes:
                    place = j, slice(start, start + size), lanes
                    do(rows, place, counts[:, : lanes.stop - lanes.start], lanes)

        jax.lax.fori_loop(0, self._mask.shape[0], body, None)

    def load(self, block: Any, shift: jax.Array | None = None, sums: Any = None) -> None:
        """Reads a block, minus ``shift``; adds its rows to ``sums``, both ``[1, row]``."""

        def one(rows: Any, place: Any, counts: jax.Array, lanes: slice) -> None:
            values = block[place].astype(jnp.float32)
            values = jnp.where(counts, values if shift is None else values - shift[:, lanes], 0.0)
            self._rows[rows, lanes] = values
            if sums is not None:
                sums[:, lanes] += values.sum(0, keepdims=True)

        self._each(one)

    def store(self, block: Any, factor: jax.Array | None = None, offset: jax.Array | None = None) -> None:
        """Writes the rows to a block, times ``factor`` and plus ``offset``, both ``[1, row]``."""

        def one(rows: Any, place: Any, counts: jax.Array, lanes: slice) -> None:
            values = self._rows[rows, lanes]
            values = values if factor is None else values * factor[:, lanes]
            values = values if offset is None else values + offset[:, lanes]
            block[place] = jnp.where(counts, values, 0.0).astype(block.dtype)

        self._each(one)


class ColumnsInLanes(_OneImage):
    """Blocks ``[p, c, w]`` of ``[n, h, c, w]``: ``p`` rows of an image."""

    def __init__(self, spec: KernelSpec):
        super().__init__(spec)
        self._side_by_side = LANES // spec.channels
        self.row = LANES

    @staticmethod
    def supports(n: int, channels: int) -> bool:
        """Whether XLA uses this layout for images of so many samples and channels, and kernels support it."""
        # With fewer channels, XLA has other layouts: the copies to and from this one cost more than the kernel saves.
        return n > 0 and channels in (16, 32, 64)

    @staticmethod
    def unit(channels: int) -> int:
        """A tile has a multiple of so many rows of the image."""
        return max(SUBLANES, LANES // channels)

    @staticmethod
    def values(columns: int, channels: int) -> int:
        """Values of a row of the image on the chip."""
        return _round_up(columns, LANES) * channels

    def to_layout(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c]`` in this layout."""
        return x.transpose(0, 1, 3, 2)

    def from_layout(self, stored: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The inverse of :meth:`to_layout`."""
        del shape
        return stored.transpose(0, 1, 3, 2)

    def block(self, tile: int) -> Any:
        """The specification of the blocks in this layout, in a grid of samples and tiles."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((None, tile, self._channels, _round_up(self._columns, LANES)), lambda i, t: (i, t, 0, 0))

    def values_at(self, image: jax.Array, place: jax.Array) -> jax.Array:
        """The values ``[c]`` at a position of one stored image, of which ``place`` is the number."""
        columns = image.shape[2]
        row = jax.lax.dynamic_slice(image, (place // columns, 0, 0), (1, self._channels, columns))[0]
        # Single columns would be gathered from a copy of the image in another order.
        return jnp.where(jnp.arange(columns) == place % columns, row, 0).sum(1)

    def scratch(self, tile: int) -> list[tuple[int, int]]:
        """The shapes of the float32 memory for the rows of a tile."""
        return [(tile // self._side_by_side * _round_up(self._columns, LANES), LANES)]

    def to_rows(self, parameter: jax.Array) -> jax.Array:
        """Parameters ``[n, c]``, repeated for the positions of a row; an axis of one sample can't be the second last."""
        return jnp.tile(parameter, (1, self._side_by_side))[:, None]

    def sum_rows(self, rows: jax.Array) -> jax.Array:
        """Sums over the positions of a row: ``[n, c]``."""
        return rows.reshape(rows.shape[0], -1, self._channels).sum(1)

    def tile(self, rows: Sequence[Any], valid: Valid | None = None) -> "TileOfColumns":
        """The rows in memory."""
        assert valid is not None
        return TileOfColumns(rows[0], valid.mask, self._channels)


class TileOfColumns(_TileInMemory):
    """A tile ``[p, c, w]`` of one sample as float32 rows of ``r`` positions, which are zero where its mask is."""

    def __init__(self, rows: Any, mask: Any, channels: int):
        super().__init__(rows, mask)
        self._channels = channels
        self._lanes = [slice(start, start + LANES) for start in range(0, mask.shape[1], LANES)]

    def _each(self, do: Callable[[Any, Any, slice, jax.Array], None]) -> None:
        """Calls ``do`` with 128 rows of the memory, their rows and columns of the image, and which of these count."""
        from jax.experimental import pallas as pl

        side_by_side, columns = LANES // self._channels, len(self._lanes)
        # A row of the mask whose number is not known is read in whole memory tiles.
        together = max(SUBLANES // side_by_side, 1)
        step = together * side_by_side

        def body(j: Any, _: None) -> None:
            for i, lanes in enumerate(self._lanes):
                mask = self._mask[pl.ds(pl.multiple_of(j * step, step), step), lanes]
                for k in range(together):
                    part = mask[k * side_by_side : (k + 1) * side_by_side, None, :]
                    counts = jnp.broadcast_to(part, (side_by_side, self._channels, LANES)).reshape(LANES, LANES) > 0
                    rows = pl.multiple_of(((j * together + k) * columns + i) * LANES, LANES)
                    do(pl.ds(rows, LANES), pl.ds(j * step + k * side_by_side, side_by_side), lanes, counts)

        jax.lax.fori_loop(0, self._mask.shape[0] // step, body, None)

    def load(self, block: Any, shift: jax.Array | None = None, sums: Any = None) -> None:
        """Reads a block, minus ``shift``; adds its rows to ``sums``, both ``[1, row]``."""
        offset = None if shift is None else _in_columns(shift)

        def one(rows: Any, of_image: Any, lanes: slice, counts: jax.Array) -> None:
            values = block[of_image, :, lanes].astype(jnp.float32).reshape(LANES, LANES)
            values = jnp.where(counts, values if offset is None else values - offset, 0.0).T
            self._rows[rows, :] = values
            if sums is not None:
                sums[...] += values.sum(0, keepdims=True)

        self._each(one)

    def store(self, block: Any, factor: jax.Array | None = None, offset: jax.Array | None = None) -> None:
        """Writes the rows to a block, times ``factor`` and plus ``offset``, both ``[1, row]``."""

        def one(rows: Any, of_image: Any, lanes: slice, counts: jax.Array) -> None:
            values = self._rows[rows, :]
            values = values if factor is None else values * factor
            values = values if offset is None else values + offset
            values = jnp.where(counts, values.T, 0.0).reshape(-1, self._channels, LANES)
            block[of_image, :, lanes] = values.astype(block.dtype)

        self._each(one)


def _in_columns(row: jax.Array) -> jax.Array:
    """A row ``[1, 128]`` as every column of ``[128, 128]``."""
    return jnp.broadcast_to(row, (LANES, LANES)).T


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
