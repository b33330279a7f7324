"""The heads of the detector: classes and boxes of regions, and their masks."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gw_jax.detection.layers import (
    ConvNorm,
    Deconv2x2,
    NormChoice,
    Types,
    conv,
    exact_types,
    he_normal,
    linear,
    xavier_uniform,
)
from gw_jax.nn.initializers import normal
from gw_jax.versions import module_list

BoxHeadName = Literal["2fc", "4conv1fc"]
ConvReLU = Literal["last", "each"]

# Edges of the regions' features.
BOX_SIZE = 7
MASK_SIZE = 14
NUM_CONVS = 4


class BoxHead(nnx.Module):
    """Class logits and box deltas of regions.

    "2fc" is two linear layers with a ReLU each. "4conv1fc" is four 3x3 convolutions and one linear layer. In the published
    code one ReLU stands after the four convolutions (``conv_relu="last"``); ``"each"`` puts one after each of them.

    The two predictors are computed in float32 at the highest precision.

    Args:
        kind: "2fc" or "4conv1fc".
        features: channels of the pyramid.
        hidden: outputs of the linear layers.
        num_classes: classes, with the background.
        norm: of the convolutions.
        conv_relu: where the ReLUs of the convolutions are.
        types: of activations and parameters.

    Source: the reference's ``FPN2MLPFeatureExtractor`` and ``FPNXconv1fcFeatureExtractor``.
    """

    def __init__(
        self,
        kind: BoxHeadName,
        features: int,
        hidden: int,
        num_classes: int,
        norm: NormChoice,
        conv_relu: ConvReLU,
        types: Types,
    ):
        self.conv_relu = conv_relu
        count = NUM_CONVS if kind == "4conv1fc" else 0
        self.convs = module_list(ConvNorm(features, features, 3, norm, normal(0.01), types) for _ in range(count))
        inputs = BOX_SIZE * BOX_SIZE * features
        self.fc6 = linear(inputs, hidden, xavier_uniform(inputs), types)
        self.fc7 = linear(hidden, hidden, xavier_uniform(hidden), types) if kind == "2fc" else None
        exact, highest = exact_types(types), jax.lax.Precision.HIGHEST
        self.logits = linear(hidden, num_classes, normal(0.01), exact, precision=highest)
        self.deltas = linear(hidden, num_classes * 4, normal(0.001), exact, precision=highest)

    def __call__(self, regions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps features ``[r, 7, 7, c]`` of regions to logits ``[r, num_classes]`` and deltas ``[r, 4 num_classes]``.

        The index of a delta is ``class * 4 + coordinate``.
        """
        x = regions
        for index, layer in enumerate(self.convs):
            x = layer(x, relu=self.conv_relu == "each" or index == NUM_CONVS - 1)
        x = nnx.relu(self.fc6(x.reshape(x.shape[0], math.prod(x.shape[1:]))))
        if self.fc7 is not None:
            x = nnx.relu(self.fc7(x))
        x = x.astype(self.logits.dtype)
        return self.logits(x), self.deltas(x)


class MaskHead(nnx.Module):
    """Mask logits of regions, at twice their resolution: four 3x3 convolutions with a ReLU each, one transposed, one 1x1.

    The last one is computed in float32 at the highest precision.

    Args:
        features: channels of the pyramid.
        num_classes: classes, with the background.
        norm: of the four convolutions.
        types: of activations and parameters.

    Source: He et al., Mask R-CNN (ICCV 2017); maskrcnn-benchmark.
    """

    def __init__(self, features: int, num_classes: int, norm: NormChoice, types: Types):
        initialise = he_normal(9 * features)
        self.convs = module_list(ConvNorm(features, features, 3, norm, initialise, types) for _ in range(NUM_CONVS))
        self.deconv = Deconv2x2(features, features, types)
        exact = exact_types(types)
        self.logits = conv(features, num_classes, 1, he_normal(num_classes), exact, precision=jax.lax.Precision.HIGHEST)

    def __call__(self, regions: jax.Array, labels: jax.Array) -> jax.Array:
        """Maps features ``[r, 14, 14, c]`` of regions to the logits ``[r, 28, 28]`` of their classes ``labels`` ``[r]``."""
        x = regions
        for layer in self.convs:
            x = layer(x, relu=True)
        x = nnx.relu(self.deconv(x)).astype(self.logits.dtype)
        # One class of each region is asked for: the others would be 80 times the work and the memory.
        assert self.logits.bias is not None
        kernel = jnp.take(self.logits.kernel[...][0, 0], labels, axis=1).astype(x.dtype)
        bias = jnp.take(self.logits.bias[...], labels).astype(x.dtype)
        y = jnp.einsum("rhwc,cr->rhw", x, kernel, precision=jax.lax.Precision.HIGHEST)
        return y + bias[:, None, None]
