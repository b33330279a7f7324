"""Types of what detectors compute, whatever those of activations and parameters."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from gw_jax.detection.detector import create_detector
from gw_jax.detection.losses import detector_losses
from gw_jax.detection.options import Sampling
from gw_jax.detection.targets import pad_targets
from gw_jax.models import Architecture
from gw_jax.nn.initializers import AbstractRngs
from gw_jax.versions import enable_x64

SLOW = pytest.mark.slow  # Traces of the same program with other types.


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "expected"),
    [
        pytest.param(jnp.bfloat16, jnp.float32, jnp.float32, id="mixed"),
        pytest.param(jnp.bfloat16, jnp.bfloat16, jnp.float32, id="bfloat16", marks=SLOW),
        pytest.param("float64", "float64", "float64", id="float64", marks=SLOW),
    ],
)
def test_types_of_detections_losses_and_gradients(dtype, param_dtype, expected):
    """All norms and both heads: what comes out is at least float32, and gradients are of the parameters' type."""
    norms = {"norm": "gw", "fpn_norm": "gn", "box_head": "4conv1fc", "box_head_norm": "gw", "mask_head_norm": "gn"}
    sizes = {"width": 8, "fpn_features": 32, "head_features": 32, "num_classes": 3, "norm_options": {"num_groups": 4}}
    with enable_x64(expected == "float64"):
        detector = create_detector(
            Architecture(False, (1, 1, 1, 1)),
            **norms,
            **sizes,
            mask_head=True,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=AbstractRngs(),
        )
        graphdef, parameters, rest = nnx.split(detector, nnx.Param, ...)
        size = jnp.array([[64, 96]], jnp.int32)
        images = jax.ShapeDtypeStruct((1, 64, 96, 3), dtype)
        targets = pad_targets([[[1, 2, 30, 40]]], [[1]], [[[[1, 2, 30, 2, 3, 40]]]], num_classes=3, max_objects=2)

        def run(parameters, rest, images):
            def losses(parameters):
                model = nnx.merge(graphdef, parameters, rest)
                losses = detector_losses(model, images, size, size, targets, jax.random.key(0), sampling=Sampling())
                return sum(losses.values()), losses

            model = nnx.merge(graphdef, parameters, rest)
            pyramid = model.pyramid(images, size)
            none = model.classify(pyramid, size, jnp.zeros((1, 0, 4)))
            return jax.grad(losses, has_aux=True)(parameters), model.detect(images, size, size), pyramid, none

        (gradients, losses), detections, pyramid, none = jax.eval_shape(run, parameters, rest, images)
    assert {leaf.dtype for leaf in pyramid.values()} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(param_dtype)}
    found = (*losses.values(), detections.boxes, detections.scores, detections.masks, *none)
    assert {leaf.dtype for leaf in found} == {jnp.dtype(expected)}
    assert len(losses) == 5
    assert [leaf.shape for leaf in none] == [(1, 0, 3), (1, 0, 12)]
