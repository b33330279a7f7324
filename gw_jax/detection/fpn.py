"""The feature pyramid network: features of equal width at five strides."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gw_jax.detection.anchors import LEVELS
from gw_jax.detection.layers import ConvNorm, NormChoice, Types, xavier_uniform
from gw_jax.versions import module_list


class FPN(nnx.Module):
    """A top-down pyramid over the stages of a backbone.

    With 1x1 convolutions ``inner`` and 3x3 convolutions ``layer``, both with a norm or a bias and without ReLU::

        s5 = inner(C5),   s_k = inner(C_k) + upsampled s_(k+1),   P_k = layer(s_k),   P6 = every second position of P5

    Upsampling repeats every position twice in both directions. The running sums are passed down, not the outputs.

    Args:
        in_features: channels of C2 to C5.
        features: channels of P2 to P6.
        norm: of all convolutions.
        types: of activations and parameters.

    Source: Lin et al., Feature Pyramid Networks (CVPR 2017); maskrcnn-benchmark.
    """

    def __init__(self, in_features: Sequence[int], features: int, norm: NormChoice, types: Types):
        self.inner = module_list(
            ConvNorm(channels, features, 1, norm, xavier_uniform(channels), types) for channels in in_features
        )
        self.layer = module_list(
            ConvNorm(features, features, 3, norm, xavier_uniform(9 * features), types) for _ in in_features
        )

    def __call__(self, maps: Sequence[jax.Array], masks: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Maps C2 to C5 ``[n, h, w, in_features]`` to P2 to P6 ``[n, h, w, features]``.

        ``masks`` ``[n, h, w]`` of P2 to P5 are true inside the valid area; the outputs are 0 outside.
        """
        outputs: dict[str, jax.Array] = {}
        running: jax.Array | None = None
        for level in reversed(range(len(maps))):
            name = f"P{level + 2}"
            x = self.inner[level](maps[level], masks[name])
            # Valid areas double exactly from level to level, so that the sum is zero outside, too.
            running = x if running is None else x + _upsample(running)
            outputs[name] = self.layer[level](running, masks[name])
        outputs["P6"] = outputs["P5"][:, ::2, ::2]
        return {name: outputs[name] for name in LEVELS}


def _upsample(x: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return doubled.reshape(n, 2 * height, 2 * width, channels)
