"""The layers of which the detector's pyramid and heads are made, with the reference's initial values."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn import Norm, make_norm
from gw_jax.nn.initializers import normal, uniform, zeros
from gw_jax.ops.checks import accumulation_dtype
from gw_jax.ops.valid import select_valid

HeadNorm = Literal["none", "gw", "gn"]

# The reference's default options, of which ours differ.
DETECTION_NORM_OPTIONS: dict[str, dict[str, Any]] = {"gw": {"num_groups": 64}, "gn": {"num_groups": 32}}


@dataclasses.dataclass(frozen=True)
class Types:
    """The types of a detector's activations and parameters, and the generators of its parameters."""

    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: nnx.Rngs

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


@dataclasses.dataclass(frozen=True)
class NormChoice:
    """A norm by name, "none" for none, and its options."""

    name: HeadNorm
    options: dict[str, Any]

    def make(self, num_features: int, types: Types) -> Norm | None:
        """The norm of ``num_features`` channels."""
        if self.name == "none":
            return None
        return make_norm(self.name, num_features, **{**types.arguments(), **self.options})


def xavier_uniform(fan_in: int) -> nnx.Initializer:
    """Values uniform in ``+-sqrt(3 / fan_in)``: what the reference calls XavierFill."""
    return uniform(math.sqrt(3 / fan_in))


def he_normal(fan_out: int) -> nnx.Initializer:
    """Normally distributed values of variance ``2 / fan_out``."""
    return normal(math.sqrt(2 / fan_out))


def exact_types(types: Types) -> Types:
    """The types of a predictor: at least float32, whatever the activations."""
    return dataclasses.replace(types, dtype=accumulation_dtype(types.param_dtype))


def conv(
    in_features: int,
    out_features: int,
    size: int,
    kernel_init: nnx.Initializer,
    types: Types,
    *,
    use_bias: bool = True,
    precision: jax.lax.Precision | None = None,
) -> nnx.Conv:
    """A convolution of stride 1 that keeps the resolution; its bias starts at zero."""
    padding = (size - 1) // 2
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        padding=((padding, padding), (padding, padding)),
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=zeros,
        precision=precision,
        **types.arguments(),
    )


def linear(
    in_features: int,
    out_features: int,
    kernel_init: nnx.Initializer,
    types: Types,
    *,
    precision: jax.lax.Precision | None = None,
) -> nnx.Linear:
    """A linear layer whose bias starts at zero."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=kernel_init,
        bias_init=zeros,
        precision=precision,
        **types.arguments(),
    )


class ConvNorm(nnx.Module):
    """A convolution and a norm; without a norm, the convolution has a bias instead.

    Attributes:
        conv: the convolution.
        norm: the norm, or None.
    """

    def __init__(
        self, in_features: int, out_features: int, size: int, norm: NormChoice, kernel_init: nnx.Initializer, types: Types
    ):
        self.norm = norm.make(out_features, types)
        self.conv = conv(in_features, out_features, size, kernel_init, types, use_bias=self.norm is None)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, h, w, out_features]``.

        ``mask`` ``[n, h, w]`` is true where a position counts; the others come out as zero. ``relu``: whether ``max(., 0)``
        is applied to the output.
        """
        y = self.conv(x)
        if self.norm is not None:
            return self.norm(y, mask, relu=relu)
        # A bias leaves no zeros for the padding of the next convolution.
        y = select_valid(y, mask)
        return nnx.relu(y) if relu else y


class Deconv2x2(nnx.Module):
    """A transposed convolution of kernel 2x2 and stride 2, which doubles the resolution.

    ``y[2 i + a, 2 j + b] = x[i, j] @ kernel[a, b] + bias``: the outputs of different inputs do not overlap.

    Attributes:
        kernel: ``[2, 2, in_features, out_features]``.
        bias: ``[out_features]``.
    """

    def __init__(self, in_features: int, out_features: int, types: Types):
        self.dtype = types.dtype
        shape = (2, 2, in_features, out_features)
        # PyTorch counts the inputs of a transposed convolution as its fan-out.
        initialise = he_normal(4 * in_features)
        self.kernel = nnx.Param(initialise(types.rngs.params(), shape, types.param_dtype))
        self.bias = nnx.Param(zeros(types.rngs.params(), (out_features,), types.param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, h, w, in_features]`` to ``[n, 2 h, 2 w, out_features]``."""
        dtype = jnp.promote_types(x.dtype, self.kernel.dtype) if self.dtype is None else self.dtype
        x, kernel, bias = (array.astype(dtype) for array in (x, self.kernel[...], self.bias[...]))
        n, height, width, _ = x.shape
        y = jnp.einsum("nhwi,abio->nhawbo", x, kernel).reshape(n, 2 * height, 2 * width, len(bias))
        return y + bias.reshape(1, 1, 1, -1)
