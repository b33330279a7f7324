"""The pyramid level in which a box is pooled."""

import jax
import jax.numpy as jnp

from gw_jax.ops.checks import as_floating

LOWEST, HIGHEST = 2, 5
# The smallest areas of levels 3, 4 and 5: those from which on the formula, with every step rounded to float32, gives them.
# A comparison with areas is the same on every device, however exact its logarithm is.
_STARTS = tuple(float.fromhex(start) for start in ("0x1.87ff92p+13", "0x1.87ffc6p+15", "0x1.87ffdcp+17"))


def level_of(boxes: jax.Array) -> jax.Array:
    """Choose the pyramid level of boxes by their area.

    The rule, in float32, with the +1 sizes of inclusive boxes::

        level = floor(4 + log2(sqrt((x2 - x1 + 1) (y2 - y1 + 1)) / 224 + 1e-6)),   clipped to 2 .. 5

    Args:
        boxes: ``[..., 4]``, x1 y1 x2 y2 in pixels of the network's input.

    Returns:
        int32 ``[...]``: 2 (stride 4) to 5 (stride 32). A box without an area, or that is not finite, has level 2.

    Raises:
        TypeError: ``boxes`` are not floating point.
        ValueError: they do not have 4 coordinates.

    Source: Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, equation 1 (arXiv 1612.03144);
    ``LevelMapper`` of the reference.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.detection.ops import level_of
        >>> level_of(jnp.array([[0.0, 0.0, 110.0, 110.0], [0.0, 0.0, 111.0, 111.0]])).tolist()
        [2, 3]
    """
    boxes = as_floating(boxes, "level_of")
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"level_of got boxes of shape {boxes.shape}; [..., 4] is needed, x1 y1 x2 y2 each.")
    x1, y1, x2, y2 = jnp.unstack(boxes.astype(jnp.float32), axis=-1)
    width, height = x2 - x1 + 1, y2 - y1 + 1
    # Two negative sides have no area, in spite of their product.
    area = jnp.where(width > 0, width, 0) * jnp.where(height > 0, height, 0)
    return sum(((area >= start).astype(jnp.int32) for start in _STARTS), jnp.full(area.shape, LOWEST, jnp.int32))
