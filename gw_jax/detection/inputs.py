"""Images on canvases of fixed size, and their valid areas."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gw_jax.detection.canvas import ALIGNMENT
from gw_jax.errors import shown

# Every image of COCO, resized to a shorter side of 800 and a longer side of at most 1333, fits into one of these.
CANVASES = ((800, 1344), (1344, 800))


def check_canvas(canvas: Any) -> tuple[int, int]:
    """``canvas`` as (height, width).

    Raises:
        ValueError: not two positive multiples of 32.
    """
    sides = tuple(canvas) if isinstance(canvas, (Sequence, np.ndarray)) and not isinstance(canvas, str) else ()
    whole = all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or any(side < 1 or side % ALIGNMENT for side in sides):
        raise ValueError(
            f"canvas={shown(canvas)}; height and width are needed, both multiples of {ALIGNMENT}, such as (800, 1344)."
        )
    return int(sides[0]), int(sides[1])


def aligned(sizes: Any) -> Any:
    """Heights and widths rounded up to multiples of 32: the ``valid`` areas of images of these ``sizes``.

    NumPy and lists give a NumPy array, an array of JAX gives one of JAX.

    Example:
        >>> from gw_jax.detection.inputs import aligned
        >>> aligned([[200, 288], [1, 33]]).tolist()
        [[224, 288], [32, 64]]
    """
    sizes = sizes.astype(jnp.int32) if isinstance(sizes, jax.Array) else np.asarray(sizes, np.int32)
    return -(-sizes // ALIGNMENT) * ALIGNMENT


def choose_canvas(height: int, width: int, canvases: Sequence[tuple[int, int]] = CANVASES) -> tuple[int, int]:
    """The canvas of smallest area into which an image of ``height x width`` fits; the first of several.

    Raises:
        ValueError: it fits into none.

    Example:
        >>> from gw_jax.detection.inputs import choose_canvas
        >>> choose_canvas(800, 1199), choose_canvas(1201, 800)
        ((800, 1344), (1344, 800))
    """
    fitting = [canvas for canvas in map(check_canvas, canvases) if height <= canvas[0] and width <= canvas[1]]
    if not fitting:
        listed = ", ".join(f"{h}x{w}" for h, w in canvases)
        raise ValueError(
            f"An image of {height}x{width} pixels (height x width) is larger than every canvas ({listed}). Resize the "
            "image, or add a canvas."
        )
    return min(fitting, key=math.prod)


def place_on_canvas(
    images: Sequence[np.ndarray], canvas: tuple[int, int], dtype: DTypeLike = np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places each image in the top-left corner of a canvas of zeros.

    Args:
        images: normalised images ``[h, w, c]``, of any sizes up to the canvas.
        canvas: height and width, multiples of 32.
        dtype: type of the result.

    Returns:
        Images ``[n, height, width, c]``, valid areas and sizes, both int32 ``[n, 2]``: the arguments of
        :meth:`Detector.detect`.

    Raises:
        ValueError: no images, an image larger than the canvas, or a canvas that is not aligned.

    Example:
        >>> import numpy as np
        >>> from gw_jax.detection import place_on_canvas
        >>> images, valid, sizes = place_on_canvas([np.ones((50, 70, 3))], (64, 128))
        >>> images.shape, valid.tolist(), sizes.tolist()
        ((1, 64, 128, 3), [[64, 96]], [[50, 70]])
    """
    height, width = check_canvas(canvas)
    if not len(images):
        raise ValueError("place_on_canvas got no images; at least one is needed.")
    images = [np.asarray(image) for image in images]
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[-1] != images[0].shape[-1] or 0 in image.shape:
            raise ValueError(
                f"Image {index} has shape {image.shape}; [height, width, channels] is needed, with the same channels "
                "for all images."
            )
        if image.shape[0] > height or image.shape[1] > width:
            raise ValueError(
                f"Image {index} has {image.shape[0]}x{image.shape[1]} pixels (height x width), which is larger than its "
                f"canvas of {height}x{width}. Resize it, or choose another canvas."
            )
    result = np.zeros((len(images), height, width, images[0].shape[-1]), dtype)
    for row, image in zip(result, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    return result, aligned(sizes), sizes
