"""The small networks of the reference's MNIST experiments: two MLPs, LeNet and an auto-encoder.

Images are ``[n, h, w, c]``. Flattened, they are in that order, channels last.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.models.linear import conv, linear
from gw_jax.nn import AnyNormName, make_norm, norm_options
from gw_jax.nn.reference_norms import REFERENCE_NORMS
from gw_jax.ops.checks import accumulation_dtype
from gw_jax.versions import module_list

CODE_SIZES = (128, 64, 12, 3)


class MLP(nnx.Module):
    """``depth`` hidden layers of ``width``, each linear, norm and ReLU, and a linear layer to the logits.

    With ``linear_after_norm``, each hidden layer is linear, norm, linear and ReLU: the second linear layer replaces
    the norm's scale and bias, which are left out unless ``norm_options`` set them.

    Source: the reference's ``MLP`` and ``MLP_NormAFLinear``.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> sizes = {"num_classes": 10, "in_channels": 1, "image_size": 28, "depth": 2}
        >>> model = gw_jax.create_model("mlp", **sizes, norm="bn", rngs=nnx.Rngs(0))
        >>> len(model.norms)
        2
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        depth: int,
        width: int,
        num_classes: int,
        norm: AnyNormName,
        norm_options: dict[str, Any],
        linear_after_norm: bool,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        options = {**types, **norm_options}
        if linear_after_norm:
            options = {**_without_affine(norm), **options}
        self.image_shape = image_shape
        sizes = (math.prod(image_shape), *[width] * (depth - 1))
        self.dtype = dtype
        self.linears = module_list([linear(size, width, **types, rngs=rngs) for size in sizes])
        self.norms = module_list([make_norm(norm, width, **options, rngs=rngs) for _ in sizes])
        after = [linear(width, width, **types, rngs=rngs) for _ in sizes if linear_after_norm]
        self.linears_after_norm = module_list(after) if after else None
        self.head = linear(width, num_classes, dtype=accumulation_dtype(param_dtype), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[n, h, w, c]`` or vectors ``[n, h w c]`` to logits ``[n, num_classes]``, at least float32."""
        x = _flatten(images if self.dtype is None else images.astype(self.dtype))
        for index, (layer, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            x = norm(layer(x))
            if self.linears_after_norm is not None:
                x = self.linears_after_norm[index](x)
            x = nnx.relu(x)
        return self.head(x.astype(self.head.dtype))


class LeNet(nnx.Module):
    """Two 5x5 convolutions with max-pooling and three linear layers, with ReLU and without norms.

    Raises:
        ValueError: images of less than 12 pixels.

    Source: LeCun et al. (1998), in the reference's variant ``LeNet``.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> gw_jax.create_model("lenet", num_classes=10, in_channels=1, image_size=28, rngs=nnx.Rngs(0)).conv1.kernel.shape
        (5, 5, 1, 6)
    """

    def __init__(
        self,
        image_size: int,
        *,
        in_channels: int,
        num_classes: int,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if image_size < 12:
            raise ValueError(f"image_size={image_size}; LeNet needs images of at least 12 pixels.")
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        edge = (image_size // 2 - 4) // 2
        self.dtype = dtype
        self.conv1 = conv(in_channels, 6, 5, padding=2, **types)
        self.conv2 = conv(6, 16, 5, padding=0, **types)
        self.linear1 = linear(16 * edge * edge, 120, **types)
        self.linear2 = linear(120, 84, **types)
        self.head = linear(84, num_classes, dtype=accumulation_dtype(param_dtype), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[n, h, w, c]`` to logits ``[n, num_classes]``, at least float32."""
        x = images if self.dtype is None else images.astype(self.dtype)
        for layer in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), strides=(2, 2))
        x = nnx.relu(self.linear2(nnx.relu(self.linear1(_flatten(x)))))
        return self.head(x.astype(self.head.dtype))


class AutoEncoder(nnx.Module):
    """Linear layers from the pixels over 128, 64 and 12 to a code of 3 numbers, and back, with ReLU between and tanh last.

    The loss it is meant for is the mean squared error to its own input, in [-1, 1]. The reference's ``AE`` names modules
    that do not exist and never ran; this is what it describes.

    Example:
        >>> import gw_jax
        >>> from flax import nnx
        >>> model = gw_jax.create_model("autoencoder", in_channels=1, image_size=8, rngs=nnx.Rngs(0))
        >>> model.encoder[0].kernel.shape
        (64, 128)
    """

    def __init__(self, in_features: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        sizes = (in_features, *CODE_SIZES)
        pairs = list(itertools.pairwise(sizes))
        self.dtype = dtype
        self.encoder = module_list([linear(a, b, **types) for a, b in pairs])
        self.decoder = module_list([linear(b, a, **types) for a, b in reversed(pairs)])

    def encode(self, images: jax.Array) -> jax.Array:
        """Maps images ``[n, h, w, c]`` to codes ``[n, 3]``."""
        x = _flatten(images if self.dtype is None else images.astype(self.dtype))
        for layer in self.encoder[:-1]:
            x = nnx.relu(layer(x))
        return self.encoder[-1](x)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[n, h, w, c]`` in [-1, 1] to their reconstructions, of the same shape."""
        x = self.encode(images)
        for layer in self.decoder[:-1]:
            x = nnx.relu(layer(x))
        return jnp.tanh(self.decoder[-1](x)).reshape(images.shape)


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _without_affine(norm: str) -> dict[str, Any]:
    if norm in REFERENCE_NORMS:
        return {"affine": False}
    return {key: False for key in ("use_scale", "use_bias") if key in norm_options(norm)}
