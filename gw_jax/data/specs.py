"""Known data sets: sizes, splits, classes and normalisation, without opening them."""

import dataclasses

# Means and standard deviations of the training images, scaled to [0, 1]. For sets that are not listed:
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.5,), (0.5,)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """An image-classification set.

    Attributes:
        name: its TFDS name.
        num_classes: number of labels.
        image_shape: ``(height, width, channels)``; height and width are None where images differ.
        train_split: TFDS split to train on; None where there is none.
        eval_split: TFDS split to evaluate on.
        num_train: examples of ``train_split``.
        num_eval: examples of ``eval_split``.
        mean: mean of each channel in [0, 1], subtracted from the image.
        std: standard deviation of each channel, by which it is divided then.

    Example:
        >>> from gw_jax.data.specs import SPECS
        >>> SPECS["cifar10"].image_shape, SPECS["cifar10"].num_train
        ((32, 32, 3), 50000)
    """

    name: str
    num_classes: int
    image_shape: tuple[int | None, int | None, int]
    train_split: str | None
    eval_split: str
    num_train: int
    num_eval: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _mnist_like(name: str, num_train: int, num_eval: int, mean: float, std: float) -> DatasetSpec:
    return DatasetSpec(name, 10, (28, 28, 1), "train", "test", num_train, num_eval, (mean,), (std,))


def _cifar(num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> DatasetSpec:
    return DatasetSpec(f"cifar{num_classes}", num_classes, (32, 32, 3), "train", "test", 50000, 10000, mean, std)


def _imagenet(name: str, num_train: int, eval_split: str, num_eval: int) -> DatasetSpec:
    train_split = "train" if num_train else None
    return DatasetSpec(
        name, 1000, (None, None, 3), train_split, eval_split, num_train, num_eval, IMAGENET_MEAN, IMAGENET_STD
    )


# By TFDS name, without the configuration ("imagenet_v2/matched-frequency" is "imagenet_v2").
SPECS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        _mnist_like("mnist5k", 4000, 1000, 0.1307, 0.3081),
        _mnist_like("mnist", 60000, 10000, 0.1307, 0.3081),
        _mnist_like("fashion_mnist", 60000, 10000, 0.2860, 0.3530),
        _cifar(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        _cifar(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        _imagenet("imagenet2012", 1281167, "validation", 50000),
        _imagenet("imagenet2012_real", 0, "validation", 50000),
        _imagenet("imagenet_v2", 0, "test", 10000),
    )
}
