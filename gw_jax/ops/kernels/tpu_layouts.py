"""The four layouts of images in a TPU's memory, and how kernels read the rows of one sample from a tile of them.

XLA keeps a batch of images, two axes of which fill the sublanes and lanes of memory tiles, in one of these orders. A kernel
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

Few large images are ``[n, h, w, c]`` in memory, too (``PositionsInSublanes``), or ``[n, h, c, w]`` where channels would
fill half of the lanes or less (``ColumnsInLanes``). A tile has rows of one image. Positions count where a mask says so;
what a last tile has beyond the image does not. In the first of the two, rows stand as they are, and the mask, which has its
columns in the lanes, is transposed on the chip. In the second, the mask lies as the tile does, and the columns of
``r = 128 / c`` rows of the image are transposed to rows of ``r`` positions.
"""

from gw_jax.ops.kernels.spec import KernelName, KernelSpec
from gw_jax.ops.kernels.tpu_batch_layouts import SamplesInLanes, SamplesInSublanes
from gw_jax.ops.kernels.tpu_image_layouts import ColumnsInLanes, PositionsInSublanes

MaskedLayout = ColumnsInLanes | PositionsInSublanes
Layout = SamplesInLanes | SamplesInSublanes | MaskedLayout
LAYOUTS: dict[KernelName, type[Layout]] = {
    "tpu_lane_tiles": SamplesInLanes,
    "tpu_sublane_tiles": SamplesInSublanes,
    "tpu_column_tiles": ColumnsInLanes,
    "tpu_position_tiles": PositionsInSublanes,
}


def layout_of(spec: KernelSpec) -> Layout:
    """The layout of a kernel in tiles."""
    return LAYOUTS[spec.kernel](spec)
