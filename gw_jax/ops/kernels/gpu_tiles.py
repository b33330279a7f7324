"""Tiles of a sample, as the GPU kernels of Group Whitening load and store them."""

from typing import Any

import jax
import jax.numpy as jnp

from gw_jax.ops.kernels.spec import KernelSpec

# Rows of a tile at most, by the bytes of a value: with one channel per group, and with more. On an H100 in bfloat16, 32
# rows take 0.63 to 0.97 of the time of 64 with 2 to 8 channels per group.
ROWS = {2: (128, 32), 4: (64, 64)}


def fewest_positions(channels_per_group: int) -> int:
    """Of a tile: a product over its rows needs 16 of them."""
    return max(1, 16 // channels_per_group)


def _tile_positions(spec: KernelSpec, width: int) -> int:
    """Positions of a tile: as many as give ``ROWS`` rows, and no more than the sample has, as a power of two."""
    most = 1 << (spec.positions.bit_length() - 1)
    rows = ROWS[width][spec.channels_per_group > 1]
    return max(fewest_positions(spec.channels_per_group), min(rows // spec.channels_per_group, most))


class Tiles:
    """A sample ``[p, g, d]`` in memory as tiles of rows ``[r, g]``."""

    def __init__(self, spec: KernelSpec, width: int):
        self._spec, self._size = spec, _tile_positions(spec, width)
        self.count = -(-spec.positions // self._size)

    def _where(self, tile: Any) -> tuple[Any, jax.Array | None]:
        """The tile's positions, and which of them the sample has, or None where all."""
        from jax.experimental import pallas as pl

        first = tile * self._size
        if self._spec.positions % self._size == 0:
            return pl.ds(first, self._size), None
        return pl.ds(first, self._size), (first + jnp.arange(self._size) < self._spec.positions)[:, None, None]

    def _by_groups(self, block: jax.Array) -> jax.Array:
        """``[p, g, d]`` as ``[p d, g]``."""
        return block.swapaxes(1, 2).reshape(-1, self._spec.num_groups)

    def by_places(self, rows: jax.Array) -> jax.Array:
        """``[p d, g]`` as ``[p, d, g]``."""
        return rows.reshape(self._size, self._spec.channels_per_group, self._spec.num_groups)

    def load(self, ref: Any, tile: Any) -> jax.Array:
        """The rows of a tile, zero past the end of the sample."""
        from jax.experimental.pallas import triton as plgpu

        positions, valid = self._where(tile)
        view = ref.at[positions, :, :]
        return self._by_groups(plgpu.load(view) if valid is None else plgpu.load(view, mask=valid, other=0))

    def store(self, ref: Any, tile: Any, rows: jax.Array) -> None:
        """Writes the rows of a tile."""
        from jax.experimental.pallas import triton as plgpu

        positions, valid = self._where(tile)
        values = self.by_places(rows).swapaxes(1, 2).astype(ref.dtype)
        plgpu.store(ref.at[positions, :, :], values, mask=valid)

    def only_valid(self, tile: Any, rows: jax.Array) -> jax.Array:
        """``rows`` with zeros where the sample has none."""
        _, valid = self._where(tile)
        return rows if valid is None else jnp.where(valid, self.by_places(rows), 0).reshape(rows.shape)

    def shift(self, ref: Any) -> jax.Array:
        """``[g]``: near the mean of every group, and equal to its values where they are all the same.

        It is the group's first value and the mean distance from it in the first tile.
        """
        from jax.experimental import pallas as pl

        first = self.load(ref, 0).astype(jnp.float32)
        start = ref[pl.ds(0, 1), :, pl.ds(0, 1)].astype(jnp.float32).reshape(-1)
        held = min(self._size, self._spec.positions) * self._spec.channels_per_group
        return start + self.only_valid(0, first - start[None, :]).sum(0) / held

    def distances(self, ref: Any, tile: Any, shift: jax.Array) -> jax.Array:
        """The tile's rows less ``shift``, in the input's type."""
        rows = self.load(ref, tile)
        return self.only_valid(tile, rows.astype(jnp.float32) - shift[None, :]).astype(rows.dtype)

    def per_place(self, ref: Any) -> jax.Array:
        """``[g, d]`` as ``[1, d, g]``."""
        return ref[...].astype(jnp.float32).T[None]
