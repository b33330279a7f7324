"""Proposals and detections of images that are sharded over devices: the same, and without communication."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gw_jax.detection.anchors import STRIDES
from gw_jax.detection.postprocess import postprocess
from gw_jax.detection.proposals import propose
from gw_jax.ops.kernels.placement import batch_sharded_over

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.slow]

N = 8
COMMUNICATION = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\b"


def network_outputs():
    rng = np.random.default_rng(0)
    maps = {level: (-(-64 // stride), -(-96 // stride)) for level, stride in STRIDES.items()}
    logits, deltas = (
        {level: rng.normal(size=(N, *side, channels)).astype(np.float32) for level, side in maps.items()}
        for channels in (3, 12)
    )
    valid = np.array([[64, 96 if i % 2 else 64] for i in range(N)], np.int32)
    return logits, deltas, valid, valid - 5


def head_outputs():
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 60, (N, 40, 2))
    boxes = np.concatenate([corner, corner + 30], -1).astype(np.float32)
    logits = 3 * rng.normal(size=(N, 40, 11)).astype(np.float32)
    deltas = rng.normal(size=(N, 40, 44)).astype(np.float32)
    return logits, deltas, boxes, rng.uniform(size=(N, 40)) < 0.8, np.full((N, 2), 90, np.int32)


def pooled(*arguments):
    return propose(*arguments, num_proposals=40, pool_images=2)


CASES = {
    "propose": (propose, network_outputs),
    "pooled": (pooled, network_outputs),
    "postprocess": (postprocess, head_outputs),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("case", CASES)
def test_sharded(case, kind):
    function, make = CASES[case]
    devices = jax.devices()[: 4 if case == "pooled" else 8]
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(kind,), devices=devices)
    arguments = make()
    expected = jax.jit(function)(*arguments)
    with jax.set_mesh(mesh):
        # Where axes are explicit, arrays of any sharding may come.
        rows = [NamedSharding(mesh, PartitionSpec("data"))] * len(arguments)
        if kind == AxisType.Explicit:
            rows[-1] = NamedSharding(mesh, PartitionSpec())
        sharded = [jax.device_put(a, row) for a, row in zip(arguments, rows, strict=True)]
        step = jax.jit(function) if kind == AxisType.Explicit else jax.jit(batch_sharded_over(mesh, "data")(function))
        compiled = step.lower(*sharded).compile()
        found = compiled(*sharded)
    for a, b in zip(found, expected, strict=True):
        assert a.sharding.spec[0] == "data"
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=1e-6)
    assert not re.search(COMMUNICATION, compiled.as_text())


def test_batches_that_do_not_divide():
    """Three images on eight devices."""
    arguments = jax.tree.map(lambda a: jnp.asarray(a[:3]), head_outputs())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    found = jax.jit(batch_sharded_over(mesh, "data")(postprocess))(*arguments)
    for a, b in zip(found, jax.jit(postprocess)(*arguments), strict=True):
        np.testing.assert_array_equal(a, b)
