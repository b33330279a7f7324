import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.ops import chunks
from gw_jax.ops.roi_align import roi_align, roi_align_levels
from tests.detection.golden import load, nhwc, part

BOTH = pytest.mark.parametrize("implementation", ["matmul", "gather"])
# Inside, across every border, far outside, without area, inverted, and of the whole map.
BOXES = np.array(
    [
        [3, 5, 40, 33], [-20, -30, 15, 10], [50, 40, 90, 99], [500, 500, 600, 600], [-90, -90, -40, -50],
        [17, 17, 17, 17], [40, 33, 3, 5], [0, 0, 63, 47], [0.3, 12.7, 63.9, 13.1],
    ],
    np.float32,
)  # fmt: skip


def definition(features, boxes, scale, bins, dtype=np.float64):
    """The docstring of ``roi_align``, sample by sample."""
    h, w, c = features.shape

    def axis(low, high, size):
        length = max((high - low) * scale, 1)
        for i in range(bins):
            for j in range(2):
                position = low * scale + i * (length / bins) + (j + 0.5) * (length / bins) / 2
                if not -1 <= position <= size:
                    continue
                position = min(max(position, 0), size - 1)
                lower = int(position)
                yield i, lower, (1 - (position - lower)) / 2
                yield i, min(lower + 1, size - 1), (position - lower) / 2

    out = np.zeros((len(boxes), bins, bins, c), dtype)
    for box, result in zip(boxes.astype(dtype), out, strict=True):
        for p, row, weight in axis(box[1], box[3], h):
            for q, column, other in axis(box[0], box[2], w):
                result[p, q] += weight * other * features[row, column]
    return out


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
@pytest.mark.parametrize("case", range(5))
def test_golden_values_and_gradients(case, implementation):
    data = part(load("ops/roi_align"), f"case{case}")
    for image, features in enumerate(nhwc(data["features_nchw"])):
        chosen = data["batch_index"] == image
        value, gradient = value_and_gradient(
            features,
            data["boxes"][chosen],
            nhwc(data["cotangent"][chosen]),
            scale=float(data["scale"]),
            implementation=implementation,
        )
        np.testing.assert_allclose(value, nhwc(data["output"][chosen]), atol=1e-5, rtol=0)
        expected = data["grad_features"][image].transpose(1, 2, 0)
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@BOTH
def test_float64_is_the_definition(implementation, float64):
    features, cotangent = arrays(np.float64)
    boxes = BOXES.astype(np.float64)
    value, gradient = value_and_gradient(features, boxes, cotangent, implementation=implementation)
    assert value.dtype == gradient.dtype == np.float64
    np.testing.assert_allclose(value, definition(features, boxes, 1 / 4, 7), atol=1e-12)
    # The operation is linear: its gradient is the transpose.
    np.testing.assert_allclose((gradient * features).sum(), (cotangent * value).sum(), rtol=1e-12)


@BOTH
def test_positions_of_float32_boxes_are_float32(implementation, float64):
    features, cotangent = arrays(np.float64)
    value, _ = value_and_gradient(features, BOXES, cotangent, implementation=implementation)
    assert value.dtype == np.float64
    difference = np.abs(value - definition(features, BOXES, 1 / 4, 7)).max()
    assert 1e-9 < difference < 1e-4


@BOTH
def test_16_bit_features(implementation):
    features, cotangent = arrays(jnp.bfloat16)
    value, gradient = value_and_gradient(features, BOXES, cotangent, implementation=implementation)
    assert value.dtype == gradient.dtype == jnp.bfloat16
    exact = definition(features.astype(np.float64), BOXES, 1 / 4, 7)
    np.testing.assert_allclose(value.astype(np.float64), exact, atol=0.03)
    _, expected = value_and_gradient(*(a.astype(np.float32) for a in (features, BOXES, cotangent)))
    np.testing.assert_allclose(gradient.astype(np.float32), expected, atol=0.01 * np.abs(expected).max())


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
    expected = list(value_and_gradient(features, BOXES, cotangent, implementation=implementation))
    for valid in (np.array([12, 16], np.int32), (12, 16)):
        value, gradient = value_and_gradient(canvas, BOXES, cotangent, valid, implementation=implementation)
        np.testing.assert_allclose(value, expected[0], atol=1e-6)
        np.testing.assert_allclose(gradient[:12, :16], expected[1], atol=1e-6)
        assert not gradient[12:].any()
        assert not gradient[:, 16:].any()


@BOTH
def test_a_valid_area_is_traced(implementation):
    features, _ = arrays()
    align = jax.jit(lambda valid: roi_align(jnp.asarray(features), jnp.asarray(BOXES), 1 / 4, 7, valid))
    for valid in ([12, 16], [9, 5], [1, 1]):
        expected = definition(features[: valid[0], : valid[1]], BOXES, 1 / 4, 7)
        np.testing.assert_allclose(align(jnp.array(valid)), expected, atol=1e-5)


@BOTH
def test_boxes_that_are_not_finite_give_zeros(implementation):
    features, cotangent = arrays()
    boxes = BOXES.copy()
    boxes[1], boxes[3, 2], boxes[5, 0] = np.nan, np.inf, -np.inf
    value, gradient = value_and_gradient(features, boxes, cotangent, implementation=implementation)
    assert not value[[1, 3, 5]].any()
    rest = [0, 2, 4, 6, 7, 8]
    expected = value_and_gradient(features, boxes[rest], cotangent[rest], implementation=implementation)
    for ours, theirs in zip((value[rest], gradient), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@BOTH
def test_no_boxes(implementation):
    value, gradient = value_and_gradient(
        arrays()[0], np.zeros((0, 4), np.float32), np.zeros((0, 7, 7, 5), np.float32), implementation=implementation
    )
    assert value.shape == (0, 7, 7, 5)
    assert not gradient.any()


@BOTH
def test_chunks_change_nothing(implementation, monkeypatch):
    features, cotangent = arrays()
    expected = list(value_and_gradient(features, BOXES, cotangent, implementation=implementation))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * (7 * 4) ** 2 * 5 * 4)  # 2 RoIs, or more: 9 are not divided evenly.
    text = jax.jit(lambda f, b: roi_align(f, b, 1 / 4, 7, implementation=implementation)).lower(features, BOXES).as_text()
    assert ("while" in text) == (implementation == "gather")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)
    for size in (1, 2 * (7 * 4) ** 2 * 5 * 4):
        monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
        ours = value_and_gradient(features, BOXES, cotangent, implementation=implementation)
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@BOTH
def test_vmap_is_a_loop(implementation):
    features, _ = arrays(shape=(3, 12, 16, 5))
    boxes = jnp.stack([jnp.asarray(BOXES) + 3 * i for i in range(3)])
    valid = jnp.array([[12, 16], [8, 9], [5, 16]])
    align = jax.jit(lambda *args: roi_align(args[0], args[1], 1 / 4, 7, args[2], implementation=implementation))
    together = jax.jit(jax.vmap(align))(features, boxes, valid)
    for i in range(3):
        np.testing.assert_allclose(together[i], align(features[i], boxes[i], valid[i]), atol=1e-6)


def test_boxes_have_no_gradient():
    features, _ = arrays()
    gradient = jax.jit(jax.grad(lambda boxes: roi_align(features, boxes, 1 / 4, 7).sum()))(jnp.asarray(BOXES))
    assert not np.asarray(gradient).any()


@BOTH
def test_levels(implementation):
    """Each box from its own level; a box of no level gives zeros."""
    fine, coarse = arrays()[0], arrays(shape=(6, 8, 5))[0]
    levels = np.array([0, 1, 1, 0, 1, 0, 1, -1, 2], np.int32)
    align = jax.jit(lambda *args: roi_align_levels(args[:2], *args[2:], (1 / 4, 1 / 8), 7, implementation=implementation))
    value = np.asarray(align(fine, coarse, BOXES, levels))
    for level, (features, scale) in enumerate([(fine, 1 / 4), (coarse, 1 / 8)]):
        chosen = levels == level
        np.testing.assert_allclose(value[chosen], definition(features, BOXES[chosen], scale, 7), atol=1e-5)
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
