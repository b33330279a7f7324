"""Features of boxes from the levels of a feature pyramid."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gw_jax.detection.levels import HIGHEST, LOWEST, level_of
from gw_jax.ops.roi_align import RoIImplementation, roi_align_levels

# Those that boxes are pooled from; P6 is for proposals only.
STRIDES = {f"P{level}": 2**level for level in range(LOWEST, HIGHEST + 1)}


def pool(
    pyramid: Mapping[str, jax.Array],
    valid: jax.Array,
    boxes: jax.Array,
    output_size: int,
    *,
    implementation: RoIImplementation = "auto",
) -> jax.Array:
    """Pool boxes from a pyramid, each from the level of its size.

    :func:`gw_jax.ops.roi_align.roi_align` of each box in the level that :func:`gw_jax.detection.levels.level_of` chooses,
    with 1 / stride as scale. Samples are clamped to the valid area of each level, ``ceil(valid / stride)``: the canvas
    around an image does not change its features.

    Args:
        pyramid: "P2" to "P5", each ``[n, h, w, c]``; other levels are not read.
        valid: int32 ``[n, 2]``, height and width of the area that each image occupies in the canvas, in pixels.
        boxes: ``[n, k, 4]``, x1 y1 x2 y2 in pixels of the network's input.
        output_size: bins per side.
        implementation: as for :func:`gw_jax.ops.roi_align.roi_align`.

    Returns:
        ``[n, k, output_size, output_size, c]`` in the type of the pyramid. Gradients go to the pyramid only.

    Raises:
        ValueError: a level is missing, or shapes do not fit.

    Source: Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, section 4.2 (arXiv 1612.03144);
    ``Pooler`` of the reference.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection.pooler import pool
        >>> pyramid = {f"P{i}": jnp.full((1, 256 >> i, 256 >> i, 8), float(i)) for i in range(2, 6)}
        >>> boxes = jnp.array([[[0.0, 0.0, 31.0, 31.0], [0.0, 0.0, 255.0, 255.0]]])
        >>> pool(pyramid, jnp.array([[256, 256]]), boxes, 7)[0, :, 0, 0, 0].tolist()
        [2.0, 4.0]
    """
    if missing := [name for name in STRIDES if name not in pyramid]:
        raise ValueError(f"The pyramid has no {', '.join(missing)}; {', '.join(STRIDES)} are needed.")
    features = tuple(jnp.asarray(pyramid[name]) for name in STRIDES)
    n = boxes.shape[0]
    if boxes.ndim != 3 or valid.shape != (n, 2) or any(array.ndim != 4 or array.shape[0] != n for array in features):
        raise ValueError(
            f"Boxes have shape {boxes.shape}, valid has {valid.shape} and the pyramid "
            f"{', '.join(str(array.shape) for array in features)}; [n, k, 4], [n, 2] and [n, h, w, c] are needed."
        )

    def image(features: tuple[jax.Array, ...], valid: jax.Array, boxes: jax.Array) -> jax.Array:
        return roi_align_levels(
            features,
            boxes,
            level_of(boxes) - LOWEST,
            [1 / stride for stride in STRIDES.values()],
            output_size,
            [-(-valid // stride) for stride in STRIDES.values()],
            implementation=implementation,
        )

    return jax.vmap(image)(features, valid.astype(jnp.int32), boxes)
