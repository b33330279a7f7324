"""The configuration of image data sets and of how their images get their size."""

import dataclasses
import math

from gw_jax.config_checks import number
from gw_jax.data.images import Transform
from gw_jax.errors import ConfigError


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    """Data sets, batch sizes, and the processing of images on the host.

    Attributes:
        name: TFDS name of the set.
        eval_name: TFDS name of another set with the same classes to evaluate on, such as "imagenet_v2/matched-frequency" or
            "imagenet2012_real"; None for the evaluation split of ``name``.
        data_dir: directory of the prepared sets; None for the TFDS default.
        allow_partial: whether a known set may lack examples, such as a few classes for a trial.
        batch_size: images per training step, over all devices.
        eval_batch_size: images per evaluation step, over all devices.
        image_size: edge in pixels of the images that the network sees; None keeps them, where all have one shape.
        crop: False resizes whole images. True trains on random crops and evaluates on the centre crop, as is usual for
            ImageNet.
        crop_scale: smallest and largest fraction of an image's area in a random crop.
        crop_ratio: smallest and largest width / height of a random crop.
        eval_resize: length in pixels of the shorter edge before the centre crop.
        shift: largest random shift of a training image in pixels, along both axes.
        flip: whether training images are mirrored at random.
        num_threads: threads that read and decode, in each worker if there are any.
        num_workers: processes that read and decode; 0 uses threads of the run itself.
        max_broken: examples that may be unreadable (each is named and replaced); one more ends the run.

    Example:
        >>> from gw_jax.classification import DataConfig
        >>> data = DataConfig(name="imagenet2012", image_size=224, crop=True, flip=True, num_workers=8)
        >>> data.check()
        >>> data.transform().eval_resize
        256
    """

    name: str = "mnist5k"
    eval_name: str | None = None
    data_dir: str | None = None
    allow_partial: bool = False
    batch_size: int = number(64, 1)
    eval_batch_size: int = number(200, 1)
    image_size: int | None = number(None, 1)
    crop: bool = False
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    eval_resize: int = number(256, 1)
    shift: int = number(0, 0)
    flip: bool = False
    num_threads: int = number(2, 1)
    num_workers: int = number(0, 0)
    max_broken: int = number(10, 0)

    def check(self) -> None:
        """Checks fields against each other.

        Raises:
            ConfigError: a crop that is not possible.
        """
        for field, pair, high in (("crop_scale", self.crop_scale, 1.0), ("crop_ratio", self.crop_ratio, math.inf)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= high or not math.isfinite(pair[1]):
                limit = f" and at most {high:g}." if high < math.inf else "."
                raise ConfigError(f"config.data.{field}={pair} must be two numbers, the smaller first, above 0" + limit)
        if not self.crop:
            return
        if self.image_size is None:
            raise ConfigError(
                "config.data.crop=True needs config.data.image_size, the edge of a crop in pixels (224 for ImageNet)."
            )
        if self.eval_resize < self.image_size:
            raise ConfigError(
                f"config.data.eval_resize={self.eval_resize} is smaller than config.data.image_size={self.image_size}, "
                f"the edge of the centre crop; give at least {self.image_size}."
            )

    def transform(self) -> Transform:
        """Resizing and cropping of the images on the host."""
        scale, ratio = self.crop_scale, self.crop_ratio
        return Transform(
            size=self.image_size,
            crop=self.crop,
            eval_resize=self.eval_resize,
            scale=(scale[0], scale[1]),
            ratio=(ratio[0], ratio[1]),
        )
