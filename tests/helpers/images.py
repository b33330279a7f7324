"""Encoded images."""

import io

import numpy as np
from PIL import Image


def image_file(mode, size):
    """An image file with random pixels: PNG for palettes and transparency, which JPEG does not have, JPEG else."""
    rng = np.random.default_rng(size)
    picture = Image.frombytes(mode, size, rng.bytes(size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands())))
    if mode == "P":
        picture.putpalette(rng.bytes(768))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG" if mode in ("P", "RGBA") else "JPEG")
    return buffer.getvalue()
