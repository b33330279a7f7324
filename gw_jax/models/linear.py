"""Linear layers and convolutions with PyTorch's default initial values."""

import math

from flax import nnx
from jax.typing import DTypeLike

from gw_jax.nn.initializers import uniform


def linear(
    in_features: int, out_features: int, *, dtype: DTypeLike | None = None, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer, weight and bias uniform in ``+-1 / sqrt(in_features)``.

    Arguments are those of ``nnx.Linear``.
    """
    initialise = uniform(1 / math.sqrt(in_features))
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=initialise,
        bias_init=initialise,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def conv(
    in_features: int,
    out_features: int,
    size: int,
    *,
    padding: int,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution with a bias, weight and bias uniform in ``+-1 / sqrt(size * size * in_features)``.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        size: edge of the kernel.
        padding: rows and columns of zeros at each edge.
        dtype: type of the computation.
        param_dtype: type of the parameters.
        rngs: the generators of the parameters.
    """
    initialise = uniform(1 / math.sqrt(size * size * in_features))
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        padding=((padding, padding), (padding, padding)),
        kernel_init=initialise,
        bias_init=initialise,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
