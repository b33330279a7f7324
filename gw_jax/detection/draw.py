"""Objects drawn into a picture with Pillow: boxes, names, scores and masks."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Colours that are told apart on photographs.
_PALETTE = (
    *((230, 25, 75), (60, 180, 75), (255, 200, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 220, 230)),
    *((240, 50, 230), (170, 220, 60), (250, 170, 190), (0, 128, 128), (170, 110, 40)),
)
_OPACITY = 110  # of a mask, of 255
# A picture with shorter sides is enlarged, or names would cover it; up to this length of the longer side.
_READABLE, _LONGEST = 320, 2400

Region = tuple[np.ndarray, slice, slice]


class DrawnObject(NamedTuple):
    """An object to draw.

    Attributes:
        box: x1 y1 x2 y2 in pixels, both ends inclusive.
        text: its name, and its score.
        color: the number of a colour, such as its label.
        mask: makes the part of its mask in a region, bool ``[h, w]``, and the region's rows and columns; or None. It is
            called when the mask is drawn, so that one exists at a time.
    """

    box: Sequence[float]
    text: str
    color: int
    mask: Callable[[], Region] | None = None


def draw_objects(picture: Any, objects: Sequence[DrawnObject]) -> Any:
    """A copy of an RGB picture of Pillow with objects; lines and letters grow with it, and a small picture is enlarged."""
    from PIL import Image

    drawn = picture.copy()
    for item in objects:
        if item.mask is not None:
            _blend(drawn, *item.mask(), _color(item.color))
    scale = math.ceil(_READABLE / min(drawn.size)) if min(drawn.size) < _READABLE else 1
    scale = max(min(scale, _LONGEST // max(drawn.size)), 1)
    if scale > 1:
        drawn = drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.BICUBIC)
    # The last ones would cover the first, which are the best.
    for item in reversed(objects):
        _draw_box(drawn, [side * scale for side in item.box], item.text, _color(item.color), scale)
    return drawn


def font(size: int) -> Any:
    """Pillow's own font, which no system has to provide."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _color(number: int) -> tuple[int, int, int]:
    return _PALETTE[number % len(_PALETTE)]


def _blend(picture: Any, region: np.ndarray, rows: slice, columns: slice, color: tuple[int, int, int]) -> None:
    from PIL import Image

    if not region.any():
        return
    place = (columns.start, rows.start, columns.start + region.shape[1], rows.start + region.shape[0])
    overlay = Image.new("RGBA", (region.shape[1], region.shape[0]), color)
    overlay.putalpha(Image.fromarray(region.astype(np.uint8) * np.uint8(_OPACITY)))
    picture.paste(Image.alpha_composite(picture.crop(place).convert("RGBA"), overlay).convert("RGB"), place[:2])


def _draw_box(picture: Any, box: Sequence[float], text: str, color: tuple[int, int, int], scale: int) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    line = max(round(min(picture.size) / 250), 1)
    letters = font(max(round(min(picture.size) / 26), 10))
    x1, y1 = (math.floor(side) for side in box[:2])
    # Inclusive ends: the box of one pixel covers it.
    x2, y2 = (max(math.ceil(side) + scale - 1, low) for side, low in zip(box[2:], (x1, y1), strict=True))
    draw.rectangle((x1, y1, x2, y2), outline=color, width=line)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=letters)
    width, height = right - left + 2 * line, bottom - top + 2 * line
    x = max(min(x1, picture.width - width), 0)
    # Above the box, or inside where there is no room.
    y = y1 - height if y1 >= height else max(min(y1, picture.height - height), 0)
    draw.rectangle((x, y, x + width, y + height), fill=color)
    dark = sum(part * share for part, share in zip(color, (0.3, 0.6, 0.1), strict=True)) > 130
    draw.text((x + line - left, y + line - top), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=letters)
