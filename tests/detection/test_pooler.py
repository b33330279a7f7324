import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.detection.levels import level_of
from gw_jax.detection.pooler import STRIDES, pool
from tests.detection.golden import load, nhwc

BOTH = pytest.mark.parametrize("implementation", ["matmul", "gather"])


def golden():
    data = load("ops/multilevel_pooler")
    pyramid = {name: nhwc(data[f"features_{name}_nchw"]) for name in STRIDES}
    np.testing.assert_array_equal(level_of(jnp.asarray(data["boxes"])), data["level"])
    return data, pyramid


@pytest.mark.slow
@BOTH
def test_golden_features_of_masks(implementation):
    data, pyramid = golden()
    pooled = jax.jit(functools.partial(pool, output_size=14, implementation=implementation))(
        pyramid, np.array([[128, 192]]), data["boxes"][None]
    )
    np.testing.assert_allclose(pooled[0], nhwc(data["output_14"]), atol=1e-6, rtol=0)


@BOTH
def test_canvas_and_batch_mates_change_nothing(implementation):
    """The golden features of the first of two images, in a larger canvas with NaN around it."""
    data, pyramid = golden()
    canvas = {}
    for name, features in pyramid.items():
        stride = STRIDES[name]
        canvas[name] = np.full((2, 224 // stride, 256 // stride, 3), np.nan, np.float32)
        canvas[name][0, : features.shape[1], : features.shape[2]] = features[0]
        canvas[name][1] = 7
    boxes = np.stack([data["boxes"], data["boxes"][::-1]])
    pooled = jax.jit(functools.partial(pool, output_size=7, implementation=implementation))(
        canvas, np.array([[128, 192], [224, 256]]), boxes
    )
    np.testing.assert_allclose(pooled[0], nhwc(data["output_7"]), atol=1e-6, rtol=0)
    inside = (data["boxes"][::-1, :2] >= 0).all(-1) & (data["boxes"][::-1, 2:] < [256, 224]).all(-1)
    assert inside.sum() > 40
    np.testing.assert_allclose(pooled[1][inside], 7, atol=1e-5)


@BOTH
def test_gradients_reach_the_level_of_each_box(implementation, quick_compilation):
    pyramid = {name: np.ones((1, 128 // stride, 192 // stride, 3), np.float32) for name, stride in STRIDES.items()}
    boxes = np.array([[[8, 8, 60, 70], [0, 0, 180, 127]]], np.float32)  # P2 and P3

    @jax.jit
    def gradient(pyramid):
        return jax.grad(lambda p: pool(p, jnp.array([[128, 192]]), boxes, 7, implementation=implementation).sum())(pyramid)

    with quick_compilation():
        sums = {name: float(values.sum()) for name, values in gradient(pyramid).items()}
    # Every bin's weights sum to 1: 49 bins of 3 channels for each box.
    np.testing.assert_allclose([sums[name] for name in STRIDES], [147, 147, 0, 0], rtol=1e-5)


@pytest.mark.slow
@BOTH
def test_images_on_several_devices_need_no_communication(implementation):
    """Values and gradients of 4 images on 4 devices are those of one device."""
    rng = np.random.default_rng(0)
    pyramid = {name: rng.standard_normal((4, 128 // s, 192 // s, 8)).astype(np.float32) for name, s in STRIDES.items()}
    corner = rng.uniform(0, 120, (4, 16, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 150, (4, 16, 2))], -1).astype(np.float32)
    arguments = (pyramid, np.tile(np.array([[128, 192]], np.int32), (4, 1)), boxes, np.ones((4, 16, 7, 7, 8), np.float32))

    @jax.jit
    def both(pyramid, valid, boxes, cotangent):
        value, pullback = jax.vjp(lambda pyramid: pool(pyramid, valid, boxes, 7, implementation=implementation), pyramid)
        return value, pullback(cotangent)[0]

    expected = both(*arguments)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    sharded = jax.device_put(arguments, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    program = both.lower(*sharded).compile()
    assert not re.search("all-reduce|all-gather|all-to-all|collective-permute", program.as_text())
    for ours, theirs in zip(jax.tree.leaves(program(*sharded)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_errors():
    pyramid = {name: jnp.ones((1, 256 // stride, 256 // stride, 2)) for name, stride in STRIDES.items()}
    valid, boxes = jnp.array([[256, 256]]), jnp.ones((1, 3, 4))
    with pytest.raises(ValueError, match="has no P5; P2, P3, P4, P5 are needed"):
        pool({name: pyramid[name] for name in ("P2", "P3", "P4")}, valid, boxes, 7)
    with pytest.raises(ValueError, match=r"valid has \(2,\)"):
        pool(pyramid, valid[0], boxes, 7)
    with pytest.raises(ValueError, match=r"Boxes have shape \(3, 4\)"):
        pool(pyramid, valid, boxes[0], 7)
