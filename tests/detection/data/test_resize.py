"""The resize rule against sizes of the reference, pixels against Pillow, and objects by hand."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gw_jax.detection.data.examples import scene_pixels
from gw_jax.detection.data.resize import flip_objects, resized_pixels, scale_objects, target_size, target_sizes
from tests.detection.fake_scenes import encoded, scene

# (width, height) -> (height, width), as the published code gives them.
REFERENCE = {
    (640, 480): (800, 1066),
    (500, 375): (800, 1066),
    (640, 427): (800, 1199),
    (640, 640): (800, 800),
    (640, 360): (750, 1333),
    (640, 200): (417, 1334),
    (333, 500): (1201, 800),
}


@pytest.mark.parametrize(("given", "expected"), REFERENCE.items())
def test_sizes_of_the_reference(given, expected):
    width, height = given
    assert target_size(height, width) == expected
    assert target_size(width, height) == expected[::-1]


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((800, 1200), (800, 1333), (800, 1200)),  # The shorter side is right already.
        ((800, 1400), (800, 1333), (762, 1333)),
        ((4000, 1), (800, 1333), (1333, 1)),  # The reference's shorter side would be 0,
        ((2000, 1), (800, 1333), (1344, 1)),  # and here its longer side 2000.
        ((1, 1), (800, 1333), (800, 800)),
        ((200, 640), (96, 128), (40, 128)),
        ((6000, 8000), (800, 1333), (800, 1066)),
    ],
)
def test_other_sizes(size, limits, expected):
    assert target_size(*size, *limits) == expected
    assert target_size(*size[::-1], *limits) == expected[::-1]


def test_every_image_fits_into_a_canvas_for_the_longest_side():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, np.log(9000), (3000, 2))).astype(np.int32)
    resized = target_sizes(sizes)
    assert resized.tolist() == [list(target_size(*size)) for size in sizes.tolist()]
    assert resized.min() == 1
    assert resized.max(1).max() <= 1344
    assert resized.min(1).max() == 800


@pytest.mark.parametrize("size", [(20, 31), (97, 60), (48, 64)])
def test_pixels_are_those_of_pillow(size):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized_pixels(Image.fromarray(pixels), size), expected)


def example(picture, kind="PNG", turn=False, turned=False, **options):
    width, height = picture.size[::-1] if turned else picture.size
    return scene(0, 48, 64)._replace(image=encoded(picture, kind, **options), height=height, width=width, turn=turn)


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "JPEG")])
def test_other_modes_become_rgb_as_in_the_reference(mode, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
    picture = (
        Image.fromarray(pixels).convert("RGB").convert(mode) if mode in "CMYKP" else Image.fromarray(pixels).convert(mode)
    )
    given = example(picture, kind)
    with Image.open(io.BytesIO(given.image)) as opened:
        expected = np.asarray(opened.convert("RGB").resize((40, 30), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(scene_pixels(given, np.array([30, 40])), expected)


def test_16_bits_are_scaled():
    picture = Image.fromarray(np.full((8, 8), 257 * 77, np.uint16))
    assert np.unique(scene_pixels(example(picture), np.array([16, 16]))).tolist() == [77]


def test_an_image_is_turned_where_its_annotations_are_of_the_turned_image():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"kind": "PNG", "exif": exif}
    plain = scene_pixels(example(Image.fromarray(pixels), **options), np.array([6, 9]))
    np.testing.assert_array_equal(plain, pixels)
    turned = scene_pixels(example(Image.fromarray(pixels), turn=True, turned=True, **options), np.array([9, 6]))
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


def test_an_image_of_another_size_than_annotated_is_refused():
    with pytest.raises(ValueError, match=r"64x48 pixels \(width x height\), annotated are 48x64"):
        scene_pixels(example(Image.new("RGB", (64, 48)), turned=True), np.array([6, 9]))


MEMORY = """
import resource, sys
import numpy as np
from PIL import Image
from gw_jax.detection.data.examples import scene_pixels
from tests.detection.fake_scenes import encoded, scene

width, height = map(int, sys.argv[1:3])
file = encoded(Image.new("L", (width, height), 9), "JPEG")
given = scene(0, 48, 64)._replace(image=file, height=height, width=width)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert scene_pixels(given, np.array(list(map(int, sys.argv[3:])))).max() == 9
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow  # Memory of a process of its own.
@pytest.mark.parametrize(("size", "limit"), [((8000, 6000), 300), ((1, 4000), 5)])
def test_an_extreme_image_needs_little_more_memory_than_its_pixels(size, limit):
    """In MB; Pillow needs 4 bytes per pixel in RGB."""
    arguments = [*size, *target_size(*size[::-1])]
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < limit


def test_objects_are_scaled_on_their_inclusive_corners():
    boxes = np.array([[10.0, 20.0, 63.0, 47.0], [0, 0, 1, 1]])
    polygons = [[np.array([10.0, 20, 64, 48, 5, 7])], [np.array([0.0, 0, 2, 0, 2, 2]), np.array([1.0, 1, 2, 1, 2, 2])]]
    scaled, parts = scale_objects(boxes, polygons, (48, 64), (72, 128))
    np.testing.assert_allclose(scaled, [[20, 30, 126, 70.5], [0, 0, 2, 1.5]])
    np.testing.assert_allclose(parts[0][0], [20, 30, 128, 72, 10, 10.5])
    assert [len(part) for part in parts[1]] == [6, 6]
    flipped, mirrored = flip_objects(scaled, parts, 128)
    np.testing.assert_allclose(flipped, [[1, 30, 107, 70.5], [125, 0, 127, 1.5]])
    np.testing.assert_allclose(mirrored[0][0], [107, 30, -1, 72, 117, 10.5])
    again, back = flip_objects(flipped, mirrored, 128)
    np.testing.assert_allclose(again, scaled)
    np.testing.assert_allclose(back[1][1], parts[1][1])


def test_no_objects_stay_none():
    boxes, polygons = scale_objects(np.zeros((0, 4)), [], (48, 64), (72, 128))
    boxes, polygons = flip_objects(boxes, polygons, 128)
    assert boxes.shape == (0, 4)
    assert polygons == []
