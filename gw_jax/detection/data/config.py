"""The configuration of a detector's data."""

import dataclasses

from gw_jax.config_checks import number
from gw_jax.errors import ConfigError


@dataclasses.dataclass(slots=True, kw_only=True)
class SceneConfig:
    """A prepared set of images with objects, and the processing of its images on the host.

    Attributes:
        name: name of the set: "digit_scenes", which is prepared on first use, or one that
            ``python -m gw_jax.detection.prepare NAME`` made.
        data_dir: directory of the prepared sets; None for the TFDS default.
        min_side: length in pixels to which the shorter side of an image is resized.
        max_side: largest length of the longer side, where ``min_side`` would exceed it.
        train_min_sides: lengths of which one is drawn for every training image in place of ``min_side``; empty for always
            ``min_side``.
        flip: whether training images are mirrored with probability 0.5.
        num_threads: threads that read and decode, in each worker if there are any.
        num_workers: processes that read and decode; 0 uses threads of the run itself.
        max_broken: images that may be unreadable (each is named and replaced); one more ends the run.

    Example:
        >>> from gw_jax.detection.data.config import SceneConfig
        >>> SceneConfig(name="mine", min_side=600, max_side=1000).check()
    """

    name: str = "digit_scenes"
    data_dir: str | None = None
    min_side: int = number(800, 1)
    max_side: int = number(1333, 1)
    train_min_sides: tuple[int, ...] = ()
    flip: bool = True
    num_threads: int = number(2, 1)
    num_workers: int = number(0, 0)
    max_broken: int = number(10, 0)

    def check(self) -> None:
        """Checks fields against each other.

        Raises:
            ConfigError: the longer side is shorter than the shorter one, or a length is not positive.
        """
        if any(side < 1 for side in self.train_min_sides):
            raise ConfigError(
                f"config.data.train_min_sides={self.train_min_sides} has a length below 1; lengths are in pixels, such as "
                "(640, 672, 704, 736, 768, 800)."
            )
        if self.max_side < self.min_side:
            raise ConfigError(
                f"config.data.max_side={self.max_side} is less than config.data.min_side={self.min_side}; the longer side "
                f"of an image needs at least {self.min_side}."
            )
