"""Checks of images in their canvas, and the masks of a pyramid's levels."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gw_jax.detection.anchors import STRIDES
from gw_jax.ops.checks import require_floating
from gw_jax.ops.valid import valid_mask

# The stride of C5: canvases and valid areas are multiples of it, so that all levels up to P5 divide exactly.
ALIGNMENT = 32
CHANNELS = 3


def pyramid_masks(valid: jax.Array, height: int, width: int) -> dict[str, jax.Array]:
    """The valid positions of P2 to P6 for a canvas ``height`` x ``width``: bool ``[n, h, w]`` each."""
    return {name: valid_mask(valid, stride, -(-height // stride), -(-width // stride)) for name, stride in STRIDES.items()}


def check_images(images: jax.Array, valid: ArrayLike, sizes: ArrayLike | None = None) -> None:
    """Checks a batch of images against its canvas; values of ``valid`` and ``sizes`` where they are not traced.

    Raises:
        TypeError: the images are not floating point, such as bytes that were not normalised.
        ValueError: the canvas is no multiple of 32, ``valid`` or ``sizes`` is of another shape than the images say, or does
            not fit into the canvas.
    """
    require_array("images", images, f"[n, height, width, {CHANNELS}]")
    if images.ndim != 4 or not images.shape[0] or images.shape[3] != CHANNELS:
        raise ValueError(f"images have shape {images.shape}; give [n, height, width, {CHANNELS}], one image at least.")
    require_floating(images, "the detector")
    n, height, width, _ = images.shape
    if height % ALIGNMENT or width % ALIGNMENT or not height or not width:
        raise ValueError(
            f"The canvas is {height}x{width}; its sides must be multiples of {ALIGNMENT}, the stride of C5. Pad the images "
            f"with zeros at the bottom and the right to {_aligned(height)}x{_aligned(width)}."
        )
    check_sizes(n, height, width, valid, sizes)


def check_pyramid(pyramid: Mapping[str, jax.Array], valid: ArrayLike, sizes: ArrayLike | None = None) -> tuple[int, int]:
    """Height and width of the canvas of ``pyramid``, against which ``valid`` and ``sizes`` are checked.

    Raises:
        ValueError: a level is missing, or ``valid`` or ``sizes`` is of another shape than the pyramid says, or does not fit
            into its canvas.
    """
    if missing := [name for name in STRIDES if name not in pyramid]:
        raise ValueError(f"The pyramid has no {', '.join(missing)}; give the result of detector.pyramid(images, valid).")
    n, height, width = pyramid["P5"].shape[:3]
    height, width = height * STRIDES["P5"], width * STRIDES["P5"]
    check_sizes(n, height, width, valid, sizes)
    return height, width


def check_sizes(n: int, height: int, width: int, valid: ArrayLike, sizes: ArrayLike | None) -> None:
    """Checks ``valid`` and ``sizes`` of ``n`` images in a canvas ``height`` x ``width``.

    Raises:
        ValueError: they are no integers ``[n, 2]``; or they are not traced, and the size of an image does not fit.
    """
    given = {"valid": valid} if sizes is None else {"valid": valid, "sizes": sizes}
    for name, value in given.items():
        require_array(name, value, f"integers of shape ({n}, 2)")
        shape, dtype = jnp.shape(value), jnp.asarray(value).dtype
        if shape != (n, 2) or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"{name} is of type {dtype} and shape {shape} for {n} images; give integers of "
                f"shape ({n}, 2), height and width of each."
            )
    if isinstance(valid, jax.core.Tracer) or isinstance(sizes, jax.core.Tracer):
        return
    areas = np.asarray(valid)
    for index, (rows, columns) in enumerate(areas.tolist()):
        if rows < 1 or columns < 1 or rows > height or columns > width or rows % ALIGNMENT or columns % ALIGNMENT:
            raise ValueError(
                f"Image {index} has the valid area {rows}x{columns} in a canvas of {height}x{width}; give its height and "
                f"width, rounded up to multiples of {ALIGNMENT}, at most the canvas."
            )
    if sizes is None:
        return
    for index, ((rows, columns), (most_rows, most_columns)) in enumerate(
        zip(np.asarray(sizes).tolist(), areas.tolist(), strict=True)
    ):
        if (_aligned(rows), _aligned(columns)) != (most_rows, most_columns) or rows < 1 or columns < 1:
            raise ValueError(
                f"Image {index} is {rows}x{columns} pixels and has the valid area {most_rows}x{most_columns}; valid is "
                f"{_aligned(rows)}x{_aligned(columns)} then, the size rounded up to multiples of {ALIGNMENT}."
            )


def require_array(name: str, value: Any, needed: str) -> None:
    """Raises ValueError unless ``value`` is an array of JAX or NumPy."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise ValueError(f"{name} is a {type(value).__name__}; give an array, {needed}.")


def _aligned(edge: int) -> int:
    return -(-edge // ALIGNMENT) * ALIGNMENT
