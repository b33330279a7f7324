import pytest

from gw_jax.augment import check_augment
from gw_jax.errors import ConfigError


@pytest.mark.parametrize("shape", [(28, 28, 1), (224, 224, 3)])
def test_grey_and_colour_images_are_accepted(shape):
    check_augment(shape, shift=27, randaugment_layers=2)


def test_without_augmentation_every_shape_is_accepted():
    check_augment((20_000, 20_000, 4))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((28, 28, 4), {"randaugment_layers": 2}, r"randaugment_layers=2 needs grey or RGB images .* have 4 channels"),
        ((16_384, 10, 3), {"randaugment_layers": 1}, r"up to 16,383 pixels per side .* these have 16384 x 10"),
        ((4_000, 4_000, 3), {"randaugment_layers": 1}, r"and 8,388,608 in all, and these have 4000 x 4000"),
        ((28, 32, 1), {"shift": 28}, r"config.data.shift=28 moves images of 28 x 32 .* choose at most 27"),
    ],
)
def test_unsuitable_images_are_named(shape, options, message):
    with pytest.raises(ConfigError, match=message):
        check_augment(shape, **options)
