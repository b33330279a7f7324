"""The region proposal network's head."""

from collections.abc import Mapping

import jax
from flax import nnx

from gw_jax.detection.anchors import RATIOS
from gw_jax.detection.layers import Types, conv, exact_types
from gw_jax.nn.initializers import normal
from gw_jax.ops.valid import select_valid


class RPNHead(nnx.Module):
    """A 3x3 convolution, a ReLU, and 1x1 convolutions to objectness and box deltas, the same at all levels.

    The two predictors are computed in float32 at the highest precision, whatever the activations: they cost little, and
    the digits of the boxes depend on them.

    Args:
        features: channels of the pyramid.
        types: of activations and parameters.

    Source: Ren et al., Faster R-CNN (NeurIPS 2015); maskrcnn-benchmark.
    """

    def __init__(self, features: int, types: Types):
        exact = exact_types(types)
        highest = jax.lax.Precision.HIGHEST
        self.conv = conv(features, features, 3, normal(0.01), types)
        self.logits = conv(features, len(RATIOS), 1, normal(0.01), exact, precision=highest)
        self.deltas = conv(features, len(RATIOS) * 4, 1, normal(0.01), exact, precision=highest)

    def __call__(
        self, pyramid: Mapping[str, jax.Array], masks: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Maps levels ``[n, h, w, features]`` to logits ``[n, h, w, 3]`` and deltas ``[n, h, w, 12]`` of their anchors.

        The channel of a delta is ``anchor * 4 + coordinate``. Outside the ``masks`` ``[n, h, w]`` both are 0.
        """
        logits, deltas = {}, {}
        for name, mask in masks.items():
            hidden = nnx.relu(self.conv(pyramid[name])).astype(self.logits.dtype)
            logits[name] = select_valid(self.logits(hidden), mask)
            deltas[name] = select_valid(self.deltas(hidden), mask)
        return logits, deltas
