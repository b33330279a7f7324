"""Box arithmetic against the golden data, and by hand where its rules are easy to get wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.ops.boxes import area, clip, decode, encode, iou
from tests.detection import golden

WEIGHTS = {"rpn": (1.0, 1.0, 1.0, 1.0), "box": (10.0, 10.0, 5.0, 5.0)}


@pytest.mark.parametrize("head", WEIGHTS)
def test_coder_in_float64(head, float64):
    arrays = golden.load("ops/box_coder")
    case = golden.part(arrays, head)
    np.testing.assert_array_equal(case["weights"], WEIGHTS[head])
    encoded = jax.jit(encode)(arrays["references"], arrays["proposals"], WEIGHTS[head])
    decoded = jax.jit(decode)(case["codes"], arrays["proposals"], WEIGHTS[head])
    assert encoded.dtype == decoded.dtype == jnp.float64
    np.testing.assert_allclose(encoded, case["encoded"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(decoded, case["decoded"], rtol=1e-12, atol=1e-12)
    if "codes_3class" in case:
        decoded = jax.jit(decode)(case["codes_3class"], arrays["proposals"], WEIGHTS[head])
        np.testing.assert_allclose(decoded, case["decoded_3class"], rtol=1e-12, atol=1e-12)
    assert (case["codes"][:, 2:] / case["weights"][2:] > np.log(1000 / 16)).any()  # The clamp is tested.


@pytest.mark.parametrize("head", WEIGHTS)
def test_coder_in_float32(head):
    arrays = golden.load("ops/box_coder")
    case = golden.part(arrays, head)
    references, proposals, codes = (np.float32(a) for a in (arrays["references"], arrays["proposals"], case["codes"]))
    encoded = jax.jit(encode)(references, proposals, WEIGHTS[head])
    decoded = jax.jit(decode)(codes, proposals, WEIGHTS[head])
    assert encoded.dtype == decoded.dtype == jnp.float32
    np.testing.assert_allclose(encoded, case["encoded"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decoded, case["decoded"], rtol=1e-5, atol=1e-5 * np.abs(case["decoded"]).max())


def test_iou_and_area(float64):
    arrays = golden.load("ops/iou")
    a, b = arrays["a"].astype(float), arrays["b"].astype(float)
    np.testing.assert_allclose(jax.jit(iou)(a, b), arrays["iou"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(area(a), arrays["area_a"], rtol=1e-6)
    # In float32, as the matcher uses it.
    np.testing.assert_allclose(jax.jit(iou)(arrays["a"], arrays["b"]), arrays["iou"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(area(a), arrays["a_as_xywh"][:, 2:].prod(1), rtol=1e-6)


def test_iou_counts_the_last_pixel():
    """Boxes that share a column of pixels overlap; boxes in neighbouring columns do not."""
    a = np.array([[0, 0, 9, 9]], np.float32)
    b = np.array([[9, 0, 18, 9], [10, 0, 19, 9], [0, 0, 9, 9]], np.float32)
    np.testing.assert_allclose(jax.jit(iou)(a, b)[0], [10 / 190, 0, 1], rtol=1e-6)


def test_iou_is_finite_whatever_the_boxes():
    boxes = np.array([[0, 0, -1, -1], [5, 5, 1, 1], [np.nan, 0, 1, 1], [0, 0, 4, 4], [0, 0, np.inf, 1]], np.float32)
    overlap = np.asarray(jax.jit(iou)(boxes, boxes))
    assert np.isfinite(overlap[:4, :4]).all()
    np.testing.assert_array_equal(overlap[:3, :4], 0)


def test_absent_rows_have_finite_codes_and_gradients():
    """Rows of zeros and boxes without sides stand in padding; a NaN there would reach every parameter."""
    rows = jnp.array([[0.0, 0, 0, 0], [3.0, 3, 2, 2], [7.0, 7, 1, 1]])
    total = jax.jit(jax.value_and_grad(lambda a, b: encode(a, b, (10, 10, 5, 5)).sum(), argnums=(0, 1)))
    code, gradients = total(rows, rows[::-1])
    assert np.isfinite(code)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_clip():
    boxes = jnp.array([[[-3.0, -2, 400, 300], [5, 6, 7, 8]], [[300, 300, 400, 400], [-9, -9, -5, -5]]])
    clipped = clip(boxes, jnp.array([[100, 200], [50, 60]], jnp.int32))
    np.testing.assert_array_equal(clipped, [[[0, 0, 199, 99], [5, 6, 7, 8]], [[59, 49, 59, 49], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(clip(boxes[0], (100, 200)), clipped[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: area(jnp.zeros((3, 5))), ValueError, r"area got boxes of shape \(3, 5\)"),
        (lambda: area(jnp.zeros((3, 4), jnp.int32)), TypeError, "int32"),
        (lambda: iou(jnp.zeros(4), jnp.zeros((1, 4))), ValueError, "2 axes"),
        (lambda: iou(jnp.zeros((1, 4), jnp.bfloat16), jnp.zeros((1, 4))), ValueError, "bfloat16 and float32"),
        (lambda: encode(jnp.zeros((3, 4)), jnp.zeros((2, 4)), (1, 1, 1, 1)), ValueError, "same shape"),
        (lambda: encode(jnp.zeros((3, 4)), jnp.zeros((3, 4)), (1, 1, 1)), ValueError, "four positive numbers"),
        (lambda: decode(jnp.zeros((3, 6)), jnp.zeros((3, 4)), (1, 1, 1, 1)), ValueError, "4 \\* classes"),
        (lambda: decode(jnp.zeros((3, 4)), jnp.zeros((3, 4)), (1, 1, 1, 0)), ValueError, "four positive numbers"),
        (lambda: clip(jnp.zeros((2, 3, 4)), (10, 20)), ValueError, r"\[n, k, 4\] with \[n, 2\]"),
    ],
)
def test_misuse(call, error, message):
    with pytest.raises(error, match=message):
        call()
