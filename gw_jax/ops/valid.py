"""Masks of the valid area of images that share a larger canvas."""

import jax
import jax.numpy as jnp


def valid_mask(valid: jax.Array, stride: int, height: int, width: int) -> jax.Array:
    """True at the positions of a feature map that belong to the image of their row: ``[n, height, width]``.

    The image stands in the top left corner of its canvas. Its feature map at a stride has ``ceil(valid / stride)`` rows and
    columns.

    Args:
        valid: integers ``[n, 2]``, height and width of each image in pixels.
        stride: of the feature map to the pixels.
        height: rows of the feature map of the canvas.
        width: its columns.

    Raises:
        ValueError: ``valid`` is of another shape, or holds no integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax.ops.valid import valid_mask
        >>> valid_mask(jnp.array([[64, 32]]), 32, 2, 3).astype(int).tolist()
        [[[1, 0, 0], [1, 0, 0]]]
    """
    if valid.ndim != 2 or valid.shape[1] != 2 or not jnp.issubdtype(valid.dtype, jnp.integer):
        raise ValueError(
            f"valid is of type {valid.dtype} and shape {valid.shape}; give integers [n, 2], height and width of each image."
        )
    # Unsigned integers have no negative ones.
    size = -(-valid.astype(jnp.int32) // stride)
    rows = jax.lax.broadcasted_iota(jnp.int32, (1, height, 1), 1) < size[:, :1, None]
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, 1, width), 2) < size[:, 1:, None]
    return rows & columns


def select_valid(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``x`` ``[n, *spatial, c]``, with zeros where ``mask`` ``[n, *spatial]`` is false. None is all true."""
    # Selected, not multiplied: outside may be NaN.
    return x if mask is None else jnp.where(mask[..., None], x, 0)
