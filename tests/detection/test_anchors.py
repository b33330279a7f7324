import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.anchors import LEVELS, STRIDES, anchor_ids, anchors, cell_anchors, visible
from tests.detection import golden

pytestmark = pytest.mark.usefixtures("strict")


def test_cell_anchors():
    np.testing.assert_array_equal(cell_anchors(), golden.load("ops/anchors")["cell_anchors"])
    assert cell_anchors().dtype == np.float32


@pytest.mark.parametrize("size", ["200x288", "224x320"])
def test_golden(size):
    image = tuple(int(side) for side in size.split("x"))

    @jax.jit
    def of_all_levels():
        found = {}
        for level in LEVELS:
            boxes = anchors(*(-(-side // STRIDES[level]) for side in golden.aligned(image)), level)
            found[level] = boxes, visible(boxes, jnp.array(image, jnp.int32))
        return found

    for level, (boxes, is_visible) in of_all_levels().items():
        case = golden.part(golden.load("ops/anchors"), f"{size}.{level}")
        assert boxes.dtype == np.float32
        assert boxes.shape == (case["count"], 4)
        np.testing.assert_array_equal(boxes[:6], case["first"])
        np.testing.assert_array_equal(boxes[-6:], case["last"])
        wide = np.asarray(boxes, float)
        np.testing.assert_allclose(wide.sum(0), case["sum"], rtol=1e-9)
        np.testing.assert_allclose((wide**2).sum(0), case["sumsq"], rtol=1e-9)
        weights = np.cos(0.37 * np.arange(len(wide)))
        np.testing.assert_allclose(weights @ wide, case["weighted_sum"], rtol=1e-9, atol=1e-9 * np.abs(wide).sum())
        inside = np.flatnonzero(is_visible)
        assert len(inside) == case["visible_count"]
        assert inside.sum() == case["visible_index_sum"]


def test_ids_are_unique_and_independent_of_the_canvas():

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def of_all_levels(height, width):
        return {level: anchor_ids(height, width, level) for level in LEVELS}

    ids, larger = of_all_levels(6, 7), of_all_levels(9, 20)
    everything = np.concatenate(list(ids.values()))
    assert len(np.unique(everything)) == 5 * 6 * 7 * 3
    assert everything.dtype == np.int32
    assert everything.min() >= 0
    for level in LEVELS:
        np.testing.assert_array_equal(np.asarray(larger[level]).reshape(9, 20, 3)[:6, :7].reshape(-1), ids[level])
    assert anchor_ids(8192, 1, "P6")[-1] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: anchors(4, 4, "P7"), "level='P7'; it must be one of P2, P3"),
        (lambda: anchors(0, 4, "P2"), "height=0"),
        (lambda: anchors(4.0, 4, "P2"), "height=4.0"),
        (lambda: anchor_ids(8193, 1, "P2"), "8193 x 1; anchor_ids allows sides up to 8192"),
        (lambda: visible(jnp.zeros((2, 4)), jnp.zeros((2, 2), jnp.int32)), "jax.vmap"),
    ],
)
def test_misuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
