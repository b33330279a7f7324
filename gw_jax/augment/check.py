"""Checks of an augmentation against the images of a data set, before a run claims its work directory."""

from gw_jax.augment.randaugment import CHANNELS, MAX_PIXELS, MAX_SIDE
from gw_jax.errors import ConfigError


def check_augment(image_shape: tuple[int, int, int], *, shift: int = 0, randaugment_layers: int = 0) -> None:
    """Checks that images of a shape can be augmented as configured.

    Args:
        image_shape: height, width and channels of the images that the network sees.
        shift: ``config.data.shift``, the largest random shift in pixels.
        randaugment_layers: ``config.augment.randaugment_layers``.

    Raises:
        ConfigError: RandAugment of images that are neither grey nor RGB, or too large; a shift past the image's edge.

    Example:
        >>> from gw_jax.augment import check_augment
        >>> check_augment((28, 28, 1), shift=2, randaugment_layers=2)
        >>> check_augment((28, 28, 1), shift=28)
        Traceback (most recent call last):
        gw_jax.errors.ConfigError: config.data.shift=28 moves images of 28 x 28 pixels out of sight; choose at most 27.
    """
    height, width, channels = image_shape
    if shift >= min(height, width):
        raise ConfigError(
            f"config.data.shift={shift} moves images of {height} x {width} pixels out of sight; choose at most "
            f"{min(height, width) - 1}."
        )
    if not randaugment_layers:
        return
    given = f"config.augment.randaugment_layers={randaugment_layers}"
    if channels not in CHANNELS:
        raise ConfigError(
            f"{given} needs grey or RGB images (1 or 3 channels), and those of the data set have {channels} channels; "
            "set it to 0."
        )
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ConfigError(
            f"{given} accepts images of up to {MAX_SIDE:,} pixels per side and {MAX_PIXELS:,} in all, and these have "
            f"{height} x {width}; set config.data.image_size, or that field to 0."
        )
