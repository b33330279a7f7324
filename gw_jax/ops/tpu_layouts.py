"""How XLA keeps images on TPUs, and how the kernels in tiles get the rows of one sample out of that.

With less than 128 channels and 128 samples or more it keeps them as ``[h, w, c, n]``, samples in the lanes; else as
``[h, w, n, c]``, samples in the sublanes and channels in the lanes. A kernel takes arrays as they lie, so that nothing is
copied around it. On the chip, a tile becomes float32 rows, of which every 128th or every 8th belongs to a sample: a strided
load picks them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.plan import Plan
from gw_jax.ops.tpu_math import LANES, SUBLANES


class SamplesInLanes:
    """Blocks ``[p, c, 128]`` of ``[h, w, c, n]``: a row has ``128 / c`` positions of a sample side by side.

    So many positions make a square block that is transposed on the chip.
    """

    samples = LANES

    def __init__(self, plan: Plan):
        self._channels, self._side_by_side = plan.channels, LANES // plan.channels
        self.row = LANES

    @staticmethod
    def takes(n: int, channels: int) -> bool:
        """Whether images of so many samples and channels are kept like that."""
        return channels < LANES and LANES % channels == 0 and n % LANES == 0

    @staticmethod
    def unit(channels: int) -> int:
        """Positions of a tile are a multiple of this."""
        return SUBLANES * (LANES // channels)

    def stored(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c]`` as it lies."""
        n, h, w, c = x.shape
        return x.transpose(1, 2, 3, 0).reshape(h * w, c, n)

    def images(self, stored: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Undoes :meth:`stored`."""
        n, h, w, c = shape
        return stored.reshape(h, w, c, n).transpose(3, 0, 1, 2)

    def block(self, tile: int) -> Any:
        """The specification of the blocks of what :meth:`stored` gives, in a grid of samples and tiles."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((tile, self._channels, LANES), lambda i, t: (t, 0, i))

    def scratch(self, tile: int) -> list[tuple[int, int]]:
        """The shapes of the float32 memory for the rows of a tile."""
        return [(tile * self._channels, LANES)]

    def widened(self, parameter: jax.Array) -> jax.Array:
        """``[n, c]`` for rows."""
        return jnp.tile(parameter, (1, self._side_by_side))

    def narrowed(self, rows: jax.Array) -> jax.Array:
        """Sums over the positions side by side: ``[n, c]``."""
        return rows.reshape(rows.shape[0], -1, self._channels).sum(1)

    def first(self, block: Any) -> jax.Array:
        """The first row of every sample of a block, in float32."""
        return block[: self._side_by_side].astype(jnp.float32).reshape(LANES, LANES).T

    def tile(self, rows: Sequence[Any]) -> "TileOfLanes":
        """The rows in memory."""
        return TileOfLanes(rows[0], self._channels)


class TileOfLanes:
    """A tile ``[p, c, 128]`` as float32 rows: row ``128 j + n`` is the ``j``-th of sample ``n``."""

    def __init__(self, rows: Any, channels: int):
        self._rows, self._channels = rows, channels
        self.count = rows.shape[0] // LANES

    def _each(self, do: Callable[[Any, Any], None]) -> None:
        from jax.experimental import pallas as pl

        side_by_side = LANES // self._channels

        def body(j: Any, _: None) -> None:
            do(pl.ds(j * LANES, LANES), pl.ds(j * side_by_side, side_by_side))

        jax.lax.fori_loop(0, self.count, body, None)

    def fill(self, block: Any, shift: jax.Array | None = None, sums: Any = None) -> None:
        """Takes a block, less ``shift``; adds the rows of every sample to ``sums``, both ``[samples, row]``."""

        def one(rows: Any, positions: Any) -> None:
            values = block[positions].astype(jnp.float32).reshape(LANES, LANES).T
            values = values if shift is None else values - shift
            self._rows[rows, :] = values
            if sums is not None:
                sums[...] += values

        self._each(one)

    def empty(self, block: Any, factor: jax.Array | None = None, offset: jax.Array | None = None) -> None:
        """Gives the rows, times ``factor`` and plus ``offset``, both ``[samples, row]``, back to a block."""

        def one(rows: Any, positions: Any) -> None:
            values = self._rows[rows, :]
            values = values if factor is None else values * factor
            values = values if offset is None else values + offset
            block[positions] = values.T.reshape(LANES // self._channels, self._channels, LANES).astype(block.dtype)

        self._each(one)

    def _of(self, sample: Any) -> Any:
        from jax.experimental import pallas as pl

        return pl.ds(sample, self.count, stride=LANES)

    def __getitem__(self, sample: Any) -> jax.Array:
        return self._rows[self._of(sample), :]

    def __setitem__(self, sample: Any, values: jax.Array) -> None:
        self._rows[self._of(sample), :] = values


class SamplesInSublanes:
    """Blocks ``[p, 8, c]`` of ``[h, w, n, c]``: a row has one position of a sample."""

    samples = SUBLANES

    def __init__(self, plan: Plan):
        self.row = plan.channels

    @staticmethod
    def takes(n: int, channels: int) -> bool:
        """Whether images of so many samples and channels are kept like that."""
        return n % SUBLANES == 0 and (channels % LANES == 0 or channels == LANES // 2)

    @staticmethod
    def unit(channels: int) -> int:
        """Positions of a tile are a multiple of this."""
        del channels
        return 1

    def stored(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, c]`` as it lies."""
        n, h, w, c = x.shape
        return x.transpose(1, 2, 0, 3).reshape(h * w, n, c)

    def images(self, stored: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Undoes :meth:`stored`."""
        n, h, w, c = shape
        return stored.reshape(h, w, n, c).transpose(2, 0, 1, 3)

    def block(self, tile: int) -> Any:
        """The specification of the blocks of what :meth:`stored` gives, in a grid of samples and tiles."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((tile, SUBLANES, self.row), lambda i, t: (t, i, 0))

    def scratch(self, tile: int) -> list[tuple[int, int]]:
        """The shapes of the float32 memory for the rows of a tile."""
        return [(tile * SUBLANES, LANES)] * -(-self.row // LANES)

    def widened(self, parameter: jax.Array) -> jax.Array:
        """``[n, c]`` for rows."""
        return parameter

    def narrowed(self, rows: jax.Array) -> jax.Array:
        """Sums over the positions side by side: ``[n, c]``."""
        return rows

    def first(self, block: Any) -> jax.Array:
        """The first row of every sample of a block, in float32."""
        return block[:1].astype(jnp.float32).reshape(SUBLANES, self.row)

    def tile(self, rows: Sequence[Any]) -> "TileOfSublanes":
        """The rows in memory."""
        return TileOfSublanes(rows, self.row)


class TileOfSublanes:
    """A tile ``[p, 8, c]`` as float32 rows: row ``8 j + n`` is the ``j``-th of sample ``n``.

    Every 128 channels are an array of their own: a strided load takes 128 lanes.
    """

    def __init__(self, rows: Sequence[Any], channels: int):
        self._rows = rows
        self._lanes = [slice(start, min(start + LANES, channels)) for start in range(0, channels, LANES)]
        self.count = rows[0].shape[0] // SUBLANES

    def fill(self, block: Any, shift: jax.Array | None = None, sums: Any = None) -> None:
        """Takes a block, less ``shift``; adds the rows of every sample to ``sums``, both ``[samples, row]``."""
        for rows, lanes in zip(self._rows, self._lanes, strict=True):
            values = block[:, :, lanes].astype(jnp.float32)
            values = values if shift is None else values - shift[None, :, lanes]
            rows[:, : values.shape[2]] = values.reshape(-1, values.shape[2])
            if sums is not None:
                sums[:, lanes] += values.sum(0)

    def empty(self, block: Any, factor: jax.Array | None = None, offset: jax.Array | None = None) -> None:
        """Gives the rows, times ``factor`` and plus ``offset``, both ``[samples, row]``, back to a block."""
        for rows, lanes in zip(self._rows, self._lanes, strict=True):
            width = lanes.stop - lanes.start
            values = rows[:, :width].reshape(self.count, SUBLANES, width)
            values = values if factor is None else values * factor[None, :, lanes]
            values = values if offset is None else values + offset[None, :, lanes]
            block[:, :, lanes] = values.astype(block.dtype)

    def _of(self, sample: Any) -> Any:
        from jax.experimental import pallas as pl

        return pl.ds(sample, self.count, stride=SUBLANES)

    def __getitem__(self, sample: Any) -> jax.Array:
        widths = [lanes.stop - lanes.start for lanes in self._lanes]
        parts = [rows[self._of(sample), :][:, :width] for rows, width in zip(self._rows, widths, strict=True)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def __setitem__(self, sample: Any, values: jax.Array) -> None:
        for rows, lanes in zip(self._rows, self._lanes, strict=True):
            part = values[:, lanes]
            if part.shape[1] < LANES:  # What is right of the channels is not read.
                part = jnp.concatenate([part, part], axis=1)
            rows[self._of(sample), :] = part


Layout = SamplesInLanes | SamplesInSublanes
Tile = TileOfLanes | TileOfSublanes
