"""Group Whitening on the device beside float64: values and gradients of every implementation that is taken."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax.doctor.layers import Call, Network
from gw_jax.doctor.report import Section
from gw_jax.ops import group_whiten, kernel_check
from gw_jax.versions import enable_x64

# Those of kernels, and one for a type that has none.
BOUNDS = {**kernel_check.BOUNDS, "float16": (6 * 2**-11, 6 * 2**-11)}
# Samples: what the kernels for TPUs need, and what a CPU computes quickly.
SAMPLES = {"kernel": 8, "matmul": 2, "plain": 2}
NAMES = ("output", "gradient of the input", "gradient of scale", "gradient of bias")


def check_numerics(network: Network, section: Section) -> None:
    """Compares each different layer's implementation with the definition in float64."""
    if not network.calls:
        section.notes.append("There is no Group Whitening layer to check.")
    for call in network.calls:
        found = errors_beside_float64(call)
        # A type with more digits than float32 has at least its accuracy.
        bounds = BOUNDS.get(call.dtype, BOUNDS["float32"])
        bad = [
            f"{name} is off by {error:.1e} (allowed: {bound:.1e})"
            for name, error, bound in zip(NAMES, found, (bounds[0], *[bounds[1]] * 3), strict=True)
            if not error <= bound  # NaN, too.
        ]
        name = call.choice.implementation
        section.add(
            call.label, f"{name}: output {found[0]:.1e}, gradients {max(found[1:]):.1e} relative to the largest value"
        )
        section.data[call.label] = dict(zip(NAMES, found, strict=True))
        if bad:
            section.problems.append(
                f'Group Whitening of {call.label} by implementation="{name}" is wrong on this device: {"; ".join(bad)}. '
                f'Use norm_options={{"implementation": "plain"}} and report it with the output of this command.'
            )


def errors_beside_float64(call: Call) -> list[float]:
    """The largest errors of output and gradients (of input, scale and bias), each relative to its largest value."""
    samples = SAMPLES.get(call.choice.implementation, 2)
    shape = (samples, *call.shape[1:])
    rng = np.random.default_rng(0)
    channels = shape[-1]
    mixing = rng.standard_normal((channels, channels), np.float32) / channels**0.5
    x = jnp.asarray(rng.standard_normal(shape, np.float32) @ mixing + 0.5, call.dtype)
    scale, bias = (jnp.asarray(rng.standard_normal(channels, np.float32) + mean) for mean in (1, 0))
    cotangent = jnp.asarray(rng.standard_normal(shape, np.float32), call.dtype)
    options: dict[str, Any] = {"method": call.method, "num_iterations": call.num_iterations, "epsilon": call.epsilon}
    # The ReLU is left out: near zero, rounding decides which values it cuts.
    whiten = functools.partial(group_whiten, num_groups=call.num_groups, **options)
    found = _values_and_gradients(
        functools.partial(whiten, implementation=call.choice.implementation), x, scale, bias, cotangent
    )
    with enable_x64(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        exact = (jnp.asarray(np.asarray(array, np.float64)) for array in (x, scale, bias, cotangent))
        truth = _values_and_gradients(functools.partial(whiten, implementation="plain"), *exact)
    return [float(np.abs(one - other).max() / (np.abs(other).max() or 1)) for one, other in zip(found, truth, strict=True)]


def _values_and_gradients(whiten: Any, x: jax.Array, scale: jax.Array, bias: jax.Array, cotangent: jax.Array) -> list[Any]:
    @jax.jit
    def both(x: jax.Array, scale: jax.Array, bias: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(lambda x, scale, bias: whiten(x, scale=scale, bias=bias), x, scale, bias)
        return y, *pullback(cotangent.astype(y.dtype))

    return [np.asarray(array, np.float64) for array in both(x, scale, bias, cotangent)]
