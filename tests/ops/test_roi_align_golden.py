import functools

import jax
import numpy as np
import pytest

from gw_jax.ops.roi_align import roi_align
from tests.detection.golden import load, nhwc, part


@pytest.mark.parametrize("implementation", ["matmul", "gather"])
@pytest.mark.parametrize("case", [0, 3, *(pytest.param(case, marks=pytest.mark.slow) for case in (1, 2, 4))])
def test_golden_values_and_gradients(case, implementation):
    """All boxes on both images; of each, the values on its own image count, and only they have a cotangent."""
    data = part(load("ops/roi_align"), f"case{case}")
    align = functools.partial(
        roi_align, scale=float(data["scale"]), output_size=int(data["output_size"]), implementation=implementation
    )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, 0))
    def both(features, boxes, cotangent):
        value, pullback = jax.vjp(lambda features: align(features, boxes), features)
        return value, pullback(cotangent)[0]

    own = data["batch_index"] == np.array([[0], [1]])
    cotangent = np.where(own[..., None, None, None], nhwc(data["cotangent"]), 0)
    value, gradient = map(np.asarray, both(nhwc(data["features_nchw"]), data["boxes"], cotangent))
    np.testing.assert_allclose(
        value[own], nhwc(data["output"])[np.argsort(data["batch_index"], kind="stable")], atol=1e-5, rtol=0
    )
    expected = nhwc(data["grad_features"])
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
