"""Recomputing backbone and pyramid for the gradient: the same gradients, and less is kept for them."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from tests.detection import detectors
from tests.detection.test_task import batches, make_config


@pytest.mark.slow
@pytest.mark.long
def test_gradients_are_the_same(quick):
    graphdef, params, rest = nnx.split(detectors.small(fpn_norm="gw"), nnx.Param, ...)
    images, valid, _ = detectors.batch([detectors.random_image(50, 90), detectors.random_image(60, 96)], 64, 96)

    def gradients(remat):
        def total(params):
            levels = nnx.merge(graphdef, params, rest).pyramid(np.nan_to_num(images), valid, remat=remat)
            return sum((levels[name] ** 2).sum() for name in ("P2", "P3", "P4", "P5"))

        return jax.tree.leaves(jax.jit(jax.grad(total))(params))

    expected = gradients(remat=False)
    largest = max(float(abs(leaf).max()) for leaf in expected)
    assert largest > 0
    for one, other in zip(gradients(remat=True), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * largest)


@pytest.mark.slow
@pytest.mark.long
def test_the_field_makes_the_losses_keep_less():
    graphdef, params, rest = nnx.split(detectors.small(fpn_norm="gw", num_classes=3, mask_head=True), nnx.Param, ...)

    def kept(**fields):
        """Numbers that the gradient of the loss keeps."""
        task = make_config(**fields).make_task()

        def residuals(params):
            def loss(params):
                return task.loss(nnx.merge(graphdef, params, rest), batches()[0], jax.random.key(0))[0]

            return jax.vjp(loss, params)[1]

        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(residuals, params)))

    assert kept(remat=True) < 0.8 * kept()
