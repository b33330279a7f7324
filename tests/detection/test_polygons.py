import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.polygons import mask_targets, pad_polygons, rasterize
from gw_jax.ops import chunks
from tests.detection.golden import load, part, unpack

rasterize = jax.jit(rasterize, static_argnames="size")
SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]


@pytest.fixture(autouse=True)
def strict(quick_compilation):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), quick_compilation():
        yield


def truncated(value):
    return int(value)  # A Fraction, towards zero, as C does.


def walked(parts, size):
    """The rule of pycocotools, step by step along every edge, in exact arithmetic. Parts are in pixels of the mask."""
    union = np.zeros((size, size), bool)
    for flat in parts:
        points = [truncated(5 * Fraction(float(value)) + Fraction(1, 2)) for value in flat]
        vertices = list(zip(points[::2], points[1::2], strict=True))
        path = []
        for (x0, y0), (x1, y1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
            dx, dy = abs(x1 - x0), abs(y1 - y0)
            turned = x0 > x1 if dx >= dy else y0 > y1
            (xs, ys), (xe, ye) = ((x1, y1), (x0, y0)) if turned else ((x0, y0), (x1, y1))
            steps = []
            for t in range(max(dx, dy) + 1):
                if dx >= dy:
                    steps.append((xs + t, truncated(ys + Fraction((ye - ys) * t, max(dx, 1)) + Fraction(1, 2))))
                else:
                    steps.append((truncated(xs + Fraction((xe - xs) * t, dy) + Fraction(1, 2)), ys + t))
            path += steps[::-1] if turned else steps
        changes = np.zeros((size, size + 1), int)
        for (u, v), (next_u, next_v) in itertools.pairwise(path):
            if u != next_u and min(u, next_u) % 5 == 2 and 0 <= min(u, next_u) // 5 < size:
                changes[min(u, next_u) // 5, min(max(-((2 - min(v, next_v)) // 5), 0), size)] += 1
        union |= (np.cumsum(changes, 1)[:, :size] % 2 == 1).T
    return union


def random_instance(rng, kind):
    parts = []
    for _ in range(rng.integers(1, 4)):
        n = rng.integers(3, 9)
        if kind == "inside":
            points = rng.uniform(0, 28, (n, 2))
        elif kind == "integers":
            points = np.repeat(rng.integers(-3, 32, (n, 2)), rng.integers(1, 3), 0)
        elif kind == "tenths":  # 5 * 0.7 + 0.5 is below 4 in float64, and 4 in float32.
            points = rng.integers(-30, 310, (n, 2)) * np.float32(0.1)
        else:
            points = rng.uniform(-70, 100, (n, 2))
        parts.append(points.astype(np.float32).ravel())
    return parts


def whole(count, size=28):
    return jnp.tile(jnp.array([[0, 0, size, size]], jnp.float32), (count, 1))


@pytest.mark.parametrize("sizes", [True, False])
def test_golden_masks_are_equal(sizes):
    """One of the boxes is outside of the image on all sides, and one instance has a part of 4 numbers."""
    data = part(load("ops/masks"), "target")
    offsets = data["polygon_offsets"]
    polygons = [[] for _ in data["boxes"]]
    for i, instance in enumerate(data["polygon_instance"]):
        polygons[instance].append(data["polygon_values"][offsets[i] : offsets[i + 1]])
    boxes = jnp.asarray(data["boxes"])
    if sizes:
        edges, parts = pad_polygons(polygons, max_objects=len(boxes), max_edges=128)
        masks = rasterize(edges, parts, boxes, tuple(data["image_wh"][::-1].tolist()))
    else:
        masks = mask_targets(polygons, boxes)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, unpack(data["masks28"], 28, 28))


@pytest.mark.parametrize("kind", ["inside", "integers", "tenths", "far"])
def test_random_polygons_are_those_of_the_walk(kind):
    rng = np.random.default_rng(0)
    polygons = [random_instance(rng, kind) for _ in range(20)]
    masks = np.asarray(mask_targets(polygons, whole(20)))
    assert 0.02 < masks.mean() < 0.9
    for mask, parts in zip(masks, polygons, strict=True):
        np.testing.assert_array_equal(mask, walked(parts, 28))


@pytest.mark.parametrize("size", [1, 33])
def test_other_sizes(size):
    rng = np.random.default_rng(0)
    polygons = [[rng.uniform(0, size, 16).astype(np.float32)] for _ in range(20)]
    masks = np.asarray(mask_targets(polygons, whole(20, size), size))
    assert masks.any()
    for mask, parts in zip(masks, polygons, strict=True):
        np.testing.assert_array_equal(mask, walked(parts, size))


def test_far_vertices_stay_exact():
    """Of a box of one pixel in an image of 16,000 pixels: products of its edges exceed int32."""
    parts = [np.array([-390000.3, -20000.7, 14.2, 400001.9, 300000.4, -390002.2], np.float32)]
    np.testing.assert_array_equal(mask_targets([parts], whole(1))[0], walked_far(parts[0]))


def walked_far(flat):
    """Even-odd rule at the centres of pixels, which are far from all edges here."""
    x, y = flat.astype(float).reshape(-1, 2).T
    inside = np.zeros((28, 28), bool)
    rows, columns = np.mgrid[:28, :28] + 0.5
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        inside ^= ((y0 > rows) != (y1 > rows)) & (columns < x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
    assert inside.any()
    return inside


def test_parts_are_joined_and_each_is_even_odd():
    """Two squares that overlap are one shape; a part that crosses itself has a hole."""
    other = [15, 15, 25, 15, 25, 25, 15, 25]
    mask = np.asarray(mask_targets([[SQUARE, other]], whole(1)))[0]
    assert mask[10:20, 10:20].all()
    assert mask[15:25, 15:25].all()
    assert mask.sum() == 175
    twice = np.asarray(mask_targets([[SQUARE + SQUARE]], whole(1)))[0]
    assert not twice.any()


def test_crops_are_scaled_by_the_size_of_the_box_without_1():
    mask = np.asarray(mask_targets([[SQUARE]], jnp.array([[10.0, 10.0, 24.0, 17.0]])))[0]
    expected = np.zeros((28, 28), bool)
    expected[:, :20] = True
    np.testing.assert_array_equal(mask, expected)
    # A box without a size counts as one of 1 pixel.
    assert np.asarray(mask_targets([[SQUARE]], jnp.array([[12.0, 12.0, 12.0, 12.0]]))).all()


def test_a_box_outside_of_the_image_is_moved():
    edges, parts = pad_polygons([[SQUARE]], max_objects=1, max_edges=4)
    box = jnp.array([[-5.0, 50.0, 23.0, 78.0]])
    moved = jnp.array([[0.0, 9.0, 28.0, 37.0]])  # To the last row, 9, of an image of 10 rows.
    np.testing.assert_array_equal(rasterize(edges, parts, box, (10, 30)), rasterize(edges, parts, moved))


def test_chunks_and_vmap_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    polygons = [random_instance(rng, "inside") for _ in range(7)]
    edges, parts = pad_polygons(polygons, max_objects=8, max_edges=40)
    boxes = whole(8)
    expected = np.asarray(rasterize(edges, parts, boxes, (28, 28)))
    assert not expected[7].any()
    halves = [array.reshape(2, 4, *array.shape[1:]) for array in (edges, parts, boxes)]
    both = jax.jit(jax.vmap(functools.partial(rasterize, size=28)))(*halves, jnp.array([[28, 28], [28, 28]]))
    np.testing.assert_array_equal(both.reshape(8, 28, 28), expected)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 3 * 40 * 28 * 4)
    chunked = jax.jit(lambda *args: rasterize.__wrapped__(*args, sizes=(28, 28)))
    assert "while" in chunked.lower(edges, parts, boxes).as_text()
    np.testing.assert_array_equal(chunked(edges, parts, boxes), expected)


def test_nothing_to_rasterise():
    assert mask_targets([], jnp.zeros((0, 4))).shape == (0, 28, 28)
    for instance in ([], [[]], [[1, 2, 3, 4]]):
        assert not np.asarray(mask_targets([instance], whole(1))).any()
    edges, parts = pad_polygons([[SQUARE]], max_objects=1, max_edges=4)
    for bad in (np.nan, np.inf, -np.inf):
        assert not np.asarray(rasterize(edges, parts, whole(1).at[0, 2].set(bad))).any()
    empty = rasterize(np.zeros((2, 0, 4), np.float32), np.zeros((2, 0), np.int32), whole(2))
    assert empty.shape == (2, 28, 28)
    assert not empty.any()


def test_float64_boxes(float64):
    edges, parts = pad_polygons([[SQUARE]], max_objects=1, max_edges=4)
    mask = rasterize(edges, parts, whole(1).astype(jnp.float64), (28, 28))
    assert mask.sum() == np.asarray(mask)[0, 10:20, 10:20].sum() == 100


def test_padding():
    edges, parts = pad_polygons([[SQUARE, [1, 2, 3, 4], [0, 0, 4, 0, 0, 4]], []], max_objects=3, max_edges=8)
    assert edges.shape == (3, 8, 4)
    assert edges.dtype == np.float32
    np.testing.assert_array_equal(parts, [[0, 0, 0, 0, 1, 1, 1, -1], [-1] * 8, [-1] * 8])
    np.testing.assert_array_equal(edges[0, 3:7], [[10, 20, 10, 10], [0, 0, 4, 0], [4, 0, 0, 4], [0, 4, 0, 0]])
    assert not edges[0, 7:].any()
    assert not edges[1:].any()


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([[SQUARE]] * 3, "3 objects; at most max_objects=2"),
        ([[SQUARE, SQUARE]], "Object 0 has polygons of 8 edges; at most max_edges=6"),
        ([[SQUARE], [[0, 0, 1, float("nan"), 1, 1]]], "object 1 is not a flat list x y x y"),
        ([[[0, 0, 1, float("inf"), 1, 1]]], "of finite numbers"),
        ([[[0, 0, 1, 0, 1, 1, 0]]], "flat list"),
        ([[[[0, 0], [1, 0], [1, 1]]]], "flat list"),
        ([[["a"] * 6]], "flat list"),
        ([SQUARE], "flat list"),
    ],
)
def test_bad_polygons_are_refused(polygons, message):
    with pytest.raises(ValueError, match=message):
        pad_polygons(polygons, max_objects=2, max_edges=6)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"1 instances and boxes of shape \(2, 4\)"):
        mask_targets([[SQUARE]], whole(2))
    with pytest.raises(ValueError, match=r"edges of shape \(2, 4, 4\), parts \(2, 4\) and boxes \(3, 4\)"):
        rasterize(jnp.zeros((2, 4, 4)), jnp.zeros((2, 4), jnp.int32), whole(3))
    with pytest.raises(ValueError, match="size=0; it must be 1 or more"):
        mask_targets([[SQUARE]], whole(1), 0)
