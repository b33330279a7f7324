"""What a detector's directory says beside its network: the size and the pixels of its images, and its categories."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gw_jax.detection.coco_categories import COCO_CATEGORIES
from gw_jax.detection.data.scenes import Category
from gw_jax.detection.pixels import PIXELS, pixels_of
from gw_jax.errors import CheckpointError, shown

# The reference's resize rule.
MIN_SIDE, MAX_SIDE = 800, 1333


@dataclasses.dataclass(frozen=True)
class Description:
    """How an image becomes a detector's input, and what its labels mean.

    Attributes:
        pixels: "rgb" or "bgr"; see :func:`gw_jax.detection.normalize`.
        min_side: length of the shorter side after the resize.
        max_side: largest length of the longer side.
        categories: label ``i + 1`` is ``categories[i]``.
    """

    pixels: str
    min_side: int
    max_side: int
    categories: tuple[Category, ...]


def entries(categories: Sequence[Category], min_side: int, max_side: int) -> dict[str, Any]:
    """The entries of the ``source`` in a ``config.json`` for categories and resize rule."""
    return {
        "categories": [{"id": int(category.id), "name": str(category.name)} for category in categories],
        "resize": {"min_side": min_side, "max_side": max_side},
    }


def describe(content: Mapping[str, Any], num_classes: int, where: str) -> Description:
    """The description in the content of a ``config.json``.

    What is missing has defaults: the reference's pixels and resize rule, COCO's categories for 81 classes, and else
    "class 1", "class 2", ....

    Args:
        content: of the file.
        num_classes: of the detector, with the background.
        where: the directory, for messages.

    Raises:
        CheckpointError: an entry is damaged.
    """
    pixels = pixels_of(content, where)
    origin = content.get("source")
    source = origin if isinstance(origin, dict) else {}
    resize = source.get("resize", {"min_side": MIN_SIDE, "max_side": MAX_SIDE})
    sides: Any = [resize.get(name) for name in ("min_side", "max_side")] if isinstance(resize, dict) else [0, 0]
    if any(type(side) is not int or side < 1 for side in sides) or sides[0] > sides[1]:
        raise CheckpointError(
            f"The resize rule in the config.json of {where} is {shown(resize)}; min_side and max_side are needed, in "
            "pixels. Export the detector again."
        )
    return Description(
        pixels=next(name for name, known in PIXELS.items() if known == pixels),
        min_side=sides[0],
        max_side=sides[1],
        categories=_categories(source.get("categories"), num_classes, where),
    )


def _categories(stored: Any, num_classes: int, where: str) -> tuple[Category, ...]:
    if stored is None:
        return default_categories(num_classes)
    try:
        categories = tuple(Category(entry["id"], entry["name"]) for entry in stored)
        right = all(type(category.id) is int and isinstance(category.name, str) for category in categories)
    except (TypeError, KeyError):
        categories, right = (), False
    if not right or len(categories) != num_classes - 1:
        raise CheckpointError(
            f"The categories in the config.json of {where} are {shown(stored)}; {num_classes - 1} objects with id and name "
            "are needed. Export the detector again."
        )
    return categories


def default_categories(num_classes: int) -> tuple[Category, ...]:
    """Those of COCO for 81 classes, else one without a name for each label."""
    if num_classes == len(COCO_CATEGORIES) + 1:
        return COCO_CATEGORIES
    return tuple(Category(label, f"class {label}") for label in range(1, num_classes))
