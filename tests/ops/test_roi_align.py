import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from gw_jax.ops import chunks
from gw_jax.ops.roi_align import roi_align, roi_align_levels

BOTH = pytest.mark.parametrize("implementation", ["matmul", "gather"])
# Inside, across every border, far outside, without area, inverted, and of the whole map.
BOXES = np.array(
    [
        [3, 5, 40, 33], [-20, -30, 15, 10], [50, 40, 90, 99], [500, 500, 600, 600], [-90, -90, -40, -50],
        [17, 17, 17, 17], [40, 33, 3, 5], [0, 0, 63, 47], [0.3, 12.7, 63.9, 13.1],
    ],
    np.float32,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    """Optimisations change roundings only; test_roi_align_golden.py has them."""
    with quick_compilation():
        yield


def matrix(low, high, scale, bins, size):
    """The docstring of ``roi_align`` on one axis, sample by sample: ``[bins, size]``."""
    out = np.zeros((bins, size))
    length = max((high - low) * scale, 1)
    for i in range(bins):
        for j in range(2):
            position = low * scale + i * (length / bins) + (j + 0.5) * (length / bins) / 2
            if not -1 <= position <= size:
                continue
            position = min(max(position, 0), size - 1)
            lower = int(position)
            out[i, lower] += (1 - (position - lower)) / 2
            out[i, min(lower + 1, size - 1)] += (position - lower) / 2
    return out


def matrices(boxes, shape, scale=1 / 4, bins=7):
    boxes = boxes.astype(np.float64)
    rows = np.stack([matrix(box[1], box[3], scale, bins, shape[0]) for box in boxes])
    return rows, np.stack([matrix(box[0], box[2], scale, bins, shape[1]) for box in boxes])


def definition(features, boxes, scale=1 / 4, bins=7):
    """Values in float64."""
    rows, columns = matrices(boxes, features.shape, scale, bins)
    return np.einsum("kph,kqw,hwc->kpqc", rows, columns, features.astype(np.float64))


def transpose(cotangent, boxes, shape, scale=1 / 4):
    """Gradients of features ``[h, w]`` in float64."""
    rows, columns = matrices(boxes, shape, scale, cotangent.shape[1])
    return np.einsum("kph,kqw,kpqc->hwc", rows, columns, cotangent.astype(np.float64))


def arrays(dtype=np.float32, shape=(12, 16, 5)):
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape).astype(dtype), rng.standard_normal((len(BOXES), 7, 7, shape[-1])).astype(dtype)


def value_and_gradient(features, boxes, cotangent, *args, scale=1 / 4, **options):
    """Of the features, compiled."""

    @jax.jit
    def both(features, boxes, cotangent):
        align = lambda features: roi_align(features, boxes, scale, cotangent.shape[1], *args, **options)  # noqa: E731
        value, pullback = jax.vjp(align, features)
        return value, pullback(cotangent)[0]

    return map(np.asarray, both(jnp.asarray(features), jnp.asarray(boxes), jnp.asarray(cotangent)))


@BOTH
def test_float64_is_the_definition(implementation, float64):
    features, cotangent = arrays(np.float64)
    boxes = BOXES.astype(np.float64)
    value, gradient = value_and_gradient(features, boxes, cotangent, implementation=implementation)
    assert value.dtype == gradient.dtype == np.float64
    np.testing.assert_allclose(value, definition(features, boxes), atol=1e-12)
    np.testing.assert_allclose(gradient, transpose(cotangent, boxes, features.shape), atol=1e-12)


def test_positions_of_float32_boxes_are_float32(float64):
    features, _ = arrays(np.float64)
    value = np.asarray(jax.jit(lambda features: roi_align(features, BOXES, 1 / 4, 7))(features))
    assert value.dtype == np.float64
    difference = np.abs(value - definition(features, BOXES)).max()
    assert 1e-9 < difference < 1e-4


@BOTH
def test_16_bit_features(implementation):
    features, cotangent = arrays(jnp.bfloat16)
    value, gradient = value_and_gradient(features, BOXES, cotangent, implementation=implementation)
    assert value.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value.astype(np.float64), definition(features, BOXES), atol=0.03)
    expected = transpose(cotangent, BOXES, features.shape)
    np.testing.assert_allclose(gradient.astype(np.float64), expected, atol=0.01 * np.abs(expected).max())


@BOTH
def test_gradients_of_16_bit_features_are_summed_in_float32(implementation):
    """Each of 4,096 boxes adds 1 / 64 or so to a pixel: a sum of 16 bits would stop growing at 2."""
    boxes = np.tile(np.array([[0, 0, 28, 28]], np.float32), (4096, 1))
    features = np.ones((8, 8, 1), jnp.bfloat16)
    cotangent = np.ones((4096, 2, 2, 1), jnp.bfloat16)
    _, gradient = value_and_gradient(features, boxes, cotangent, implementation=implementation)
    np.testing.assert_allclose(gradient.astype(np.float64).sum(), 4096 * 4, rtol=1e-2)


@BOTH
def test_nothing_outside_of_the_valid_area_is_used(implementation):
    features, cotangent = arrays()
    canvas = np.full((20, 31, 5), np.nan, np.float32)
    canvas[:12, :16] = features
    value, gradient = value_and_gradient(canvas, BOXES, cotangent, (12, 16), implementation=implementation)
    np.testing.assert_allclose(value, definition(features, BOXES), atol=1e-5)
    expected = np.pad(transpose(cotangent, BOXES, features.shape), ((0, 8), (0, 15), (0, 0)))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert not gradient[12:].any()
    assert not gradient[:, 16:].any()


@BOTH
def test_a_valid_area_is_traced(implementation):
    features, _ = arrays()
    align = jax.jit(lambda valid: roi_align(features, BOXES, 1 / 4, 7, valid, implementation=implementation))
    for valid in ([12, 16], [9, 5], [1, 1]):
        expected = definition(features[: valid[0], : valid[1]], BOXES)
        np.testing.assert_allclose(align(np.array(valid, np.int32)), expected, atol=1e-5)


@BOTH
def test_boxes_that_are_not_finite_give_zeros(implementation):
    features, cotangent = arrays()
    boxes = BOXES.copy()
    boxes[1], boxes[3, 2], boxes[5, 0] = np.nan, np.inf, -np.inf
    value, gradient = value_and_gradient(features, boxes, cotangent, implementation=implementation)
    assert not value[[1, 3, 5]].any()
    rest = [0, 2, 4, 6, 7, 8]
    np.testing.assert_allclose(value[rest], definition(features, BOXES[rest]), atol=1e-5)
    np.testing.assert_allclose(gradient, transpose(cotangent[rest], BOXES[rest], features.shape), atol=1e-5)


@BOTH
def test_no_boxes(implementation):
    value, gradient = value_and_gradient(
        arrays()[0], np.zeros((0, 4), np.float32), np.zeros((0, 7, 7, 5), np.float32), implementation=implementation
    )
    assert value.shape == (0, 7, 7, 5)
    assert not gradient.any()


@BOTH
def test_chunks_change_nothing(implementation, monkeypatch):
    """Chunks of 2 boxes, of which there are 9."""
    features, cotangent = arrays()
    bytes_per_box = 4 * 5 * (7 * 12 if implementation == "matmul" else (7 * 4) ** 2)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * bytes_per_box)
    align = lambda features: roi_align(features, jnp.asarray(BOXES), 1 / 4, 7, implementation=implementation)  # noqa: E731
    assert "length=5" in str(jax.make_jaxpr(align)(features))
    value, gradient = value_and_gradient(features, BOXES, cotangent, implementation=implementation)
    np.testing.assert_allclose(value, definition(features, BOXES), atol=1e-5)
    np.testing.assert_allclose(gradient, transpose(cotangent, BOXES, features.shape), atol=1e-5)


@pytest.mark.slow
@BOTH
def test_vmap_is_a_loop(implementation):
    features, _ = arrays(shape=(3, 12, 16, 5))
    boxes = np.stack([BOXES + 3 * i for i in range(3)])
    valid = np.array([[12, 16], [8, 9], [5, 16]])
    align = jax.jit(jax.vmap(lambda *args: roi_align(args[0], args[1], 1 / 4, 7, args[2], implementation=implementation)))
    for value, image, some, size in zip(align(features, boxes, valid), features, boxes, valid, strict=True):
        np.testing.assert_allclose(value, definition(image[: size[0], : size[1]], some), atol=1e-5)


def test_boxes_have_no_gradient():
    features, _ = arrays()
    gradient = jax.jit(jax.grad(lambda boxes: roi_align(features, boxes, 1 / 4, 7).sum()))(jnp.asarray(BOXES))
    assert not np.asarray(gradient).any()


@pytest.mark.slow
@BOTH
def test_levels(implementation):
    """Each box from its own level; a box of no level gives zeros."""
    fine, coarse = arrays()[0], arrays(shape=(6, 8, 5))[0]
    levels = np.array([0, 1, 1, 0, 1, 0, 1, -1, 2], np.int32)
    align = jax.jit(lambda *args: roi_align_levels(args[:2], *args[2:], (1 / 4, 1 / 8), 7, implementation=implementation))
    value = np.asarray(align(fine, coarse, BOXES, levels))
    for level, (features, scale) in enumerate([(fine, 1 / 4), (coarse, 1 / 8)]):
        chosen = levels == level
        np.testing.assert_allclose(value[chosen], definition(features, BOXES[chosen], scale), atol=1e-5)
    assert not value[-2:].any()


@pytest.mark.parametrize(("platform", "product"), [("tpu", True), ("gpu", False), ("cpu", False)])
def test_auto_is_chosen_by_the_device(platform, product, monkeypatch):
    from gw_jax.ops import roi_align as module
    from gw_jax.ops.kernels.placement import DeviceKind

    monkeypatch.setattr(module, "device_kind", lambda: DeviceKind(platform, "any"))
    jaxpr = str(jax.make_jaxpr(lambda features: roi_align(features, jnp.asarray(BOXES), 1 / 4, 7))(arrays()[0]))
    assert ("dot_general" in jaxpr) == product


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_512_boxes_is_bounded(implementation, dtype):
    """The rows between the two products of all boxes would be 616 MB in bfloat16, and all pixels that are read 411 MB."""

    def both(features, boxes, cotangent):
        align = lambda features: roi_align(features, boxes, 1 / 4, 7, implementation=implementation)  # noqa: E731
        value, pullback = jax.vjp(align, features)
        return value, pullback(cotangent)

    shapes = [((200, 336, 256), dtype), ((512, 4), "float32"), ((512, 7, 7, 256), dtype)]
    arguments = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes]
    memory = jax.jit(both).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 300e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": jnp.ones((4, 4))}, r"features of shape \(4, 4\); \[height, width, channels\]"),
        ({"features": jnp.ones((4, 0, 2))}, "none 0"),
        ({"boxes": jnp.ones((4, 5))}, r"boxes of shape \(4, 5\); \[k, 4\]"),
        ({"scale": 0.0}, "above 0"),
        ({"scale": float("nan")}, "finite"),
        ({"output_size": 0}, "output_size=0; it must be 1 or more"),
        ({"output_size": 4096}, "at most 2048"),
        ({"output_size": 7.0}, "must be an integer"),
        ({"valid": (5, 4)}, r"valid=\(5, 4\); 1 to \(4, 4\) is allowed"),
        ({"valid": (0, 4)}, r"valid=\(0, 4\)"),
        ({"valid": jnp.ones(2)}, "two integers"),
        ({"valid": (1, 2, 3)}, "two integers"),
        ({"implementation": "einsum"}, "choose one of auto, matmul, gather"),
    ],
)
def test_errors_say_what_is_allowed(change, message):
    call = {"features": jnp.ones((4, 4, 2)), "boxes": jnp.ones((3, 4)), "scale": 0.25, "output_size": 7}
    with pytest.raises(ValueError, match=message):
        roi_align(**(call | change))


@pytest.mark.parametrize("name", ["features", "boxes"])
def test_integers_are_refused(name):
    call = {"features": jnp.ones((4, 4, 2)), "boxes": jnp.ones((3, 4))}
    call[name] = call[name].astype(jnp.int32)
    with pytest.raises(TypeError, match="roi_align got an array of type int32"):
        roi_align(**call, scale=0.25, output_size=7)


def test_float64_of_numpy_without_float64_of_jax():
    """One warning that says so, and none of JAX about types that it does not have."""
    with pytest.warns(UserWarning, match="roi_align got a float64 NumPy array") as warned:
        pooled = jax.eval_shape(lambda boxes: roi_align(np.ones((4, 4, 1)), boxes, 1 / 4, 1), jnp.zeros((1, 4)))
    assert pooled.dtype == jnp.float32
    assert len(warned) == 1


@BOTH
def test_the_gradient_of_a_replicated_map_is_summed_over_the_boxes_of_all_devices(implementation):
    features = jnp.asarray(np.random.default_rng(0).standard_normal((16, 16, 4)), jnp.float32)
    boxes = jnp.asarray([[1.0, 1, 9, 8], [3, 2, 14, 12]])

    def gradient(features, boxes):
        return jax.grad(lambda f: (roi_align(f, boxes, 1.0, 3, implementation=implementation) ** 3).sum())(features)

    mesh, everywhere = (
        jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2]),
        PartitionSpec(),
    )
    split = jax.shard_map(gradient, mesh=mesh, in_specs=(everywhere, PartitionSpec("data")), out_specs=everywhere)
    np.testing.assert_allclose(jax.jit(split)(features, boxes), gradient(features, boxes), atol=1e-4)
