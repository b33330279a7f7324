"""ROIAlign in static shapes: by matrix products or by gathering, from one feature map or from the levels of a pyramid."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax.errors import unknown_name
from gw_jax.ops import roi_align_gather, roi_align_matmul
from gw_jax.ops.checks import as_floating, require_integer
from gw_jax.ops.kernels.placement import device_kind
from gw_jax.ops.roi_samples import Levels
from gw_jax.ops.sharding import vary_as

RoIImplementation = Literal["auto", "matmul", "gather"]
# Up to which the positions of samples are exact; see gw_jax.ops.exact.
MAX_OUTPUT_SIZE = 2**11
IMPLEMENTATIONS = ("auto", "matmul", "gather")


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    scale: float,
    output_size: int,
    valid: Any = None,
    *,
    implementation: RoIImplementation = "auto",
) -> jax.Array:
    """Sample a feature map inside boxes: the first, unaligned ROIAlign, with 2 x 2 samples per bin.

    On each axis, with ``S`` valid feature pixels and ``s = output_size`` bins::

        start = x1 * scale,   length = max((x2 - x1) * scale, 1),   bin = length / s
        c = start + (i + (j + 1/2) / 2) * bin                     for the bins i and the samples j = 0, 1
        0 where c < -1 or c > S, else linear between the pixels around min(max(c, 0), S - 1)

    The output is the mean of a bin's four samples. There is no shift by half a pixel and no +1 in the length.

    Positions are computed in float32, in float64 if both ``features`` and ``boxes`` are. Sums are float32 (float64 for
    float64 features). With 16-bit features, "matmul" rounds the weights and the rows between the two products to 16 bits;
    "gather" does not. RoIs are processed in chunks, so that memory does not grow with their number.

    Args:
        features: ``[h, w, c]``, floating point.
        boxes: ``[k, 4]``, x1 y1 x2 y2 in image pixels. There may be none. They may be outside of the image, inverted or
            without area; a box that is not finite gives zeros.
        scale: feature pixels per image pixel, such as 1/4.
        output_size: ``s``, bins per side.
        valid: (height, width) of the valid area in feature pixels, at least 1 each, or None for all of it. Nothing outside
            of it is used, not even where it is NaN.
        implementation: "matmul" multiplies with the ``[s, h]`` and ``[s, w]`` weights of each box, "gather" reads the
            16 pixels of each bin. They agree to rounding. "auto" is "matmul" on TPUs and "gather" elsewhere. The gradient
            of "gather" is a scatter, whose order of summation is not fixed on GPUs.

    Returns:
        ``[k, s, s, c]`` in the type of ``features``. Gradients go to ``features`` only, and are summed in float32.

    Raises:
        TypeError: ``features`` or ``boxes`` are not floating point.
        ValueError: shapes or options do not fit; the message names what is allowed.

    Source: He et al., Mask R-CNN, ICCV 2017, section 3 (arXiv 1703.06870); torchvision's ``roi_align`` with
    ``aligned=False, sampling_ratio=2``.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.roi_align import roi_align
        >>> columns = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 1))
        >>> roi_align(columns, jnp.array([[8.0, 8.0, 24.0, 24.0]]), 1 / 4, 2)[0, :, :, 0].tolist()
        [[3.0, 5.0], [3.0, 5.0]]
    """
    boxes = as_floating(boxes, "roi_align")
    levels = jnp.zeros(boxes.shape[:1], jnp.int32)
    valid = None if valid is None else (valid,)
    return roi_align_levels((features,), boxes, levels, (scale,), output_size, valid, implementation=implementation)


def roi_align_levels(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    levels: jax.Array,
    scales: Sequence[float],
    output_size: int,
    valid: Sequence[Any] | None = None,
    *,
    implementation: RoIImplementation = "auto",
) -> jax.Array:
    """Sample each box in its level of a pyramid, by :func:`roi_align`.

    "matmul" multiplies every level with all boxes, whose weights are zero in the levels of others. "gather" reads one
    table of all levels.

    Args:
        features: of each level, ``[h, w, c]``, all of one type.
        boxes: ``[k, 4]``.
        levels: int32 ``[k]``, the index of each box's level in ``features``. A box of another value gives zeros.
        scales: of each level, feature pixels per image pixel.
        output_size: ``s``, bins per side.
        valid: of each level, (height, width) of the valid area, or None.
        implementation: as for :func:`roi_align`.

    Returns:
        ``[k, s, s, c]`` in the type of ``features``.

    Raises:
        TypeError: ``features`` or ``boxes`` are not floating point.
        ValueError: shapes or options do not fit; the message names what is allowed.

    Source: Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, section 4.2 (arXiv 1612.03144).

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.roi_align import roi_align_levels
        >>> fine, coarse = jnp.ones((8, 8, 1)), jnp.full((4, 4, 1), 2.0)
        >>> boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 16.0, 16.0]])
        >>> roi_align_levels((fine, coarse), boxes, jnp.array([0, 1]), (1 / 4, 1 / 8), 1)[:, 0, 0, 0].tolist()
        [1.0, 2.0]
    """
    boxes = as_floating(boxes, "roi_align")
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"roi_align got boxes of shape {boxes.shape}; [k, 4] is needed, x1 y1 x2 y2 each.")
    features = tuple(as_floating(array, "roi_align") for array in features)
    for array in features:
        if array.ndim != 3 or 0 in array.shape:
            raise ValueError(f"roi_align got features of shape {array.shape}; [height, width, channels] is needed, none 0.")
    if len({(array.shape[-1], jnp.dtype(array.dtype)) for array in features}) != 1 or len(scales) != len(features):
        kinds = ", ".join(f"{array.dtype} {array.shape}" for array in features)
        raise ValueError(
            f"roi_align got levels {kinds} and {len(scales)} scales; one scale for each level, and levels of one type and "
            "one number of channels are needed."
        )
    scales = tuple(float(scale) for scale in scales)
    if not all(np.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"roi_align got scales {scales}; finite numbers above 0 are needed, such as 1/4.")
    output_size = require_integer("output_size", output_size, 1)
    if output_size > MAX_OUTPUT_SIZE:
        raise ValueError(f"output_size={output_size}; it must be at most {MAX_OUTPUT_SIZE}.")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(unknown_name("implementation", implementation, IMPLEMENTATIONS))
    if levels.shape != boxes.shape[:1]:
        raise ValueError(
            f"roi_align got levels of shape {levels.shape} for boxes of shape {boxes.shape}; one each is needed."
        )
    if valid is not None and len(valid) != len(features):
        raise ValueError(f"roi_align got {len(valid)} valid sizes for {len(features)} levels; one for each is needed.")
    sizes = jnp.stack([_valid_size(array, None if valid is None else valid[i]) for i, array in enumerate(features)])
    if implementation == "auto":
        # On a CPU, products take 15 to 110 times as long. Compiled for a v5e, they move 0.6 of the bytes of gathering, and
        # 1.1 with gradients, but no single rows, nor do they scatter. No time was measured on a TPU or a GPU.
        implementation = "matmul" if device_kind().platform == "tpu" else "gather"
    double = all(array.dtype == jnp.float64 for array in (boxes, features[0]))
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float64 if double else jnp.float32)
    shapes = tuple((array.shape[0], array.shape[1], array.shape[2]) for array in features)
    static = Levels(shapes, features[0].dtype, scales, output_size)
    features = tuple(vary_as(array, boxes) for array in features)
    align = roi_align_matmul.align if implementation == "matmul" else roi_align_gather.align
    return align(static, features, boxes, levels, sizes)


def _valid_size(features: jax.Array, valid: Any) -> jax.Array:
    """``valid`` as int32 ``[2]``, at most the size of the map."""
    full = features.shape[:2]
    if valid is None:
        return jnp.array(full, jnp.int32)
    size = jnp.stack([jnp.asarray(side, jnp.int32) for side in valid]) if isinstance(valid, (tuple, list)) else valid
    size = jnp.asarray(size)
    if size.shape != (2,) or not jnp.issubdtype(size.dtype, jnp.integer):
        raise ValueError(
            f"roi_align got valid of type {size.dtype} and shape {size.shape}; two integers are needed, the height and the "
            f"width of the valid area in feature pixels, at most {full}."
        )
    if not isinstance(size, jax.core.Tracer) and not np.all((np.asarray(size) >= 1) & (np.asarray(size) <= full)):
        raise ValueError(f"roi_align got valid={tuple(np.asarray(size).tolist())}; 1 to {full} is allowed.")
    return jnp.clip(size.astype(jnp.int32), 1, jnp.array(full, jnp.int32))
