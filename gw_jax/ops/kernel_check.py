"""The check of a kernel against the definition on the device that will run it.

Both run on the device: the kernel in the type of the input, the definition in float32 with products at the highest
precision. Output and gradients are compared for random samples, for samples beside a constant one and one with a NaN, and
for one whose mean is large; with a mask where the kernel takes one, and NaN where that is false. A kernel fails with one
value beyond the bounds, or if it cannot be compiled or run.
"""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gw_jax.errors import TrainingError, one_line
from gw_jax.ops import kernels
from gw_jax.ops.group_whitening import kernel_definition
from gw_jax.ops.kernels import answers, check_cache, placement
from gw_jax.ops.kernels.answers import Question
from gw_jax.ops.kernels.check_cache import Answer

# Largest errors of output and gradients, relative to the largest value. A bfloat16 number is off by 2^-9 at most; input,
# centred input and output are rounded.
BOUNDS = {"float32": (2e-5, 1e-4), "bfloat16": (6 * 2**-9, 6 * 2**-9)}
RESULTS = ("output", "gradient of the input", "gradient of scale", "gradient of bias")
# Two programs of each kernel, so that a program that reads the samples of another one is seen.
SAMPLES = {
    "tpu_resident": 16,
    "tpu_sublane_tiles": 16,
    "tpu_lane_tiles": 256,
    "tpu_column_tiles": 5,
    "tpu_position_tiles": 5,
    "gpu_triton": 8,
    "gpu_split": 8,
}
# The definition takes so many samples at a time, one of those that are large: it needs ten times their memory.
_CHUNK = 8
# Samples of the second input.
_CONSTANT, _NAN, _FAR = 1, 2, 3
_OFFSET = 20.0

_Arrays = tuple[jax.Array, ...]


def check_kernels(function: Callable[..., Any], *arguments: Any, repeat: bool = False) -> dict[str, bool]:
    """Check the kernels that fit the calls of Group Whitening in a function, so that "auto" uses those that are right.

    The function is traced, not run. Every kernel that fits one of its calls on this device computes samples of that size
    beside the definition; answers are kept in the user's cache directory, and this process and later ones believe them.
    Call it before the function is compiled. Where the device has no kernels, nothing happens.

    Args:
        function: what will be compiled, such as a training step.
        *arguments: its arguments, or their shapes (``jax.ShapeDtypeStruct``).
        repeat: whether kernels with a kept answer are checked again.

    Returns:
        Kernel and shape of each, and whether it is right.

    Raises:
        ValueError: on several hosts, which have to agree; the trainer does this.
        TrainingError: a kernel left the device unusable. The next process does not use it.

    Example:
        >>> import jax.numpy as jnp
        >>> from gw_jax import GroupWhitening
        >>> from gw_jax.ops import check_kernels
        >>> from flax import nnx
        >>> layer = GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
        >>> check_kernels(layer, jnp.ones((32, 8, 8, 64)))  # {} on a CPU, which has no kernels
        {}
    """
    if jax.process_count() > 1:
        raise ValueError("check_kernels got several processes, which have to agree on kernels; use gw_jax.train for that.")
    found: dict[str, bool] = {}
    if kernels.has_kernels(placement.attached_device_kind()):
        for question in answers.questions_of(function, *arguments):
            found[question.text] = answered(question, jax.local_devices()[0], repeat=repeat).passed
    return found


def answered(question: Question, device: jax.Device, *, repeat: bool = False) -> Answer:
    """The answer of this process, else of the cache, else of a check on ``device``, which is kept in both.

    Args:
        question: the kernel.
        device: of this process.
        repeat: whether a check is made in any case.

    Raises:
        TrainingError: the device is not usable after the check.
    """
    known = None if repeat else answers.answer_to(question) or check_cache.read(question.key)
    if known is not None:
        return known
    answer = check_kernel(question, device)
    check_cache.write(question.key, answer)
    answers.decide(question, answer)
    if not answer.passed:
        _require_usable(device, question)
    return answer


def check_kernel(question: Question, device: jax.Device) -> Answer:
    """Checks a kernel on a device of this process. What goes wrong is a failed answer, not an exception."""
    began = time.perf_counter()
    try:
        # Contexts of the caller (a mesh, checks for NaN, another precision) belong to its thread.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            errors, problems = pool.submit(_compare, question, device).result()
    except Exception as error:  # Of the compiler, or of the device.
        text = f"it does not run ({type(error).__name__}: {one_line(' '.join(str(error).split()), 200)})"
        # Memory may be free the next time.
        return Answer(False, text, seconds=time.perf_counter() - began, keep="RESOURCE_EXHAUSTED" not in str(error))
    value, gradient = BOUNDS[question.dtype]
    for name, bound in zip(RESULTS, (value, gradient, gradient, gradient), strict=True):
        if not errors[name] <= bound:
            problems.insert(0, f"its {name} is off by {errors[name]:.1e} of the largest value ({bound:.1e} is allowed)")
    return Answer(not problems, "; ".join(problems), errors, time.perf_counter() - began)


def _require_usable(device: jax.Device, question: Question) -> None:
    """Raises TrainingError if a kernel that failed has taken the device with it, as an invalid address does on a GPU."""
    try:
        _probe(device)
    except Exception as error:
        raise TrainingError(
            f"The device is not usable after the check of the kernel {question.text}, which failed. Start the same "
            "command again: the answer is kept, and the kernel is not used."
        ) from error


def _probe(device: jax.Device) -> None:
    jax.block_until_ready(jax.device_put(np.ones(8, np.float32), device) + 1)


def _compare(question: Question, device: jax.Device) -> tuple[dict[str, float], list[str]]:
    """The largest error of each result beside the definition, and what else is wrong."""
    spec, (h, w) = question.spec, question.spatial
    shape = (SAMPLES[spec.kernel], h, w, spec.channels)
    program = jax.jit(functools.partial(_values_and_gradients, spec))
    errors, problems = dict.fromkeys(RESULTS, 0.0), []
    for seed, hard in enumerate((False, True)):
        with jax.default_device(device):
            x, scale, bias, cotangent = _make_inputs(shape, question.dtype, seed, hard)
            mask = _make_mask(shape) if spec.takes_mask else None
            if mask is not None:
                # What does not count may be anything.
                x, cotangent = (jnp.where(mask[..., None], array, jnp.nan) for array in (x, cotangent))
            found = program(x, scale, bias, cotangent, mask)
        arrays = x, scale, bias, cotangent, mask, *found
        size = _CHUNK if mask is None else 1
        chunks = [slice(first, first + size) for first in range(0, shape[0], size)]
        parts = [_errors(spec, *(None if array is None else array[chunk] for array in arrays)) for chunk in chunks]
        # [results, samples]
        off, largest = (np.concatenate([np.asarray(part[i]) for part in parts], axis=1) for i in (0, 1))
        counted = np.ones(shape[0], bool)
        if hard:
            counted[[_CONSTANT, _NAN]] = False
            problems += _hard_problems(spec, found, bias, mask)
        for name, differences, values in zip(RESULTS, off[:, counted], largest[:, counted], strict=True):
            errors[name] = max(errors[name], float(differences.max() / max(values.max(), np.finfo(np.float32).tiny)))
    return errors, problems


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _make_inputs(shape: tuple[int, ...], dtype: str, seed: int, hard: bool) -> _Arrays:
    """Correlated channels with a mean; scale and bias per sample ``[n, c]``; a cotangent."""
    n, channels = shape[0], shape[-1]
    keys = jax.random.split(jax.random.key(seed), 5)
    mixing = jax.random.normal(keys[0], (channels, channels), jnp.float32) / channels**0.5
    white = jax.random.normal(keys[1], shape, jnp.float32)
    x = jnp.einsum("nhwk,kc->nhwc", white, mixing, precision="highest") + 0.5
    if hard:
        x = x.at[_CONSTANT].set(0.1).at[_NAN, 0, 0, min(3, channels - 1)].set(jnp.nan).at[_FAR].add(_OFFSET)
    scale = jax.random.normal(keys[2], (n, channels), jnp.float32) + 1
    bias = jax.random.normal(keys[3], (n, channels), jnp.float32)
    return x.astype(dtype), scale, bias, jax.random.normal(keys[4], shape, jnp.float32).astype(dtype)


def _make_mask(shape: tuple[int, ...]) -> jax.Array:
    """Of the first sample all counts, of the last nothing; of the others not the last rows and columns, or the first."""
    n, h, w, _ = shape
    cut = jnp.arange(n)[:, None]

    def kept(size: int) -> jax.Array:
        index, left = jnp.arange(size), jnp.maximum(size - cut, 1)
        # The one with a NaN has it at its first position.
        return jnp.where((cut == _NAN) | (cut == 0), index < left, index >= size - left) & (cut < n - 1)

    return kept(h)[:, :, None] & kept(w)[:, None]


def _values_and_gradients(
    spec: kernels.KernelSpec,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    cotangent: jax.Array,
    mask: jax.Array | None,
) -> _Arrays:
    y, pullback = jax.vjp(lambda *arrays: kernels.whiten_samples(*arrays, mask, spec, kernel_definition), x, scale, bias)
    return y, *pullback(cotangent)


@functools.partial(jax.jit, static_argnums=0)
def _errors(
    spec: kernels.KernelSpec,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    cotangent: jax.Array,
    mask: jax.Array | None,
    *found: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The largest difference from the definition, and the largest value of that, ``[results, samples]``.

    With a ReLU, gradients are compared for the cut that the kernel made: near zero, rounding decides it.
    """
    x, cotangent = x.astype(jnp.float32), cotangent.astype(jnp.float32)
    if spec.relu:
        cotangent = jnp.where(found[0] > 0, cotangent, 0)

    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return kernel_definition(dataclasses.replace(spec, relu=False), x, scale, bias, mask)

    y, pullback = jax.vjp(plain, x, scale, bias)
    truth = (jnp.maximum(y, 0) if spec.relu else y, *pullback(cotangent))

    def of_samples(array: jax.Array) -> jax.Array:
        return jnp.abs(array.astype(jnp.float32)).reshape(array.shape[0], -1).max(1)

    def difference(one: jax.Array, other: jax.Array) -> jax.Array:
        off = one.astype(jnp.float32) - other
        return of_samples(jnp.where(jnp.isnan(off), jnp.inf, off))

    differences = [difference(one, other) for one, other in zip(found, truth, strict=True)]
    return jnp.stack(differences), jnp.stack([of_samples(other) for other in truth])


def _hard_problems(spec: kernels.KernelSpec, found: _Arrays, bias: jax.Array, mask: jax.Array | None) -> list[str]:
    """What is wrong with the constant sample and with the one that has a NaN; the others are compared as any."""
    problems = []
    constant = [np.asarray(array[_CONSTANT].astype(jnp.float32)) for array in found]
    expected = np.asarray(bias[_CONSTANT])
    expected = np.maximum(expected, 0) if spec.relu else expected
    if mask is not None:
        expected = np.where(np.asarray(mask[_CONSTANT])[..., None], expected, 0)
    if not np.abs(constant[0] - expected).max() <= 2**-8 * np.abs(expected).max():
        problems.append("its output for a constant sample is not the bias")
    if not all(np.isfinite(array).all() for array in constant):
        problems.append("it gives no finite values for a constant sample")
    if not np.isnan(np.asarray(found[0][_NAN].astype(jnp.float32))).any():
        problems.append("it hides a NaN of its input")
    return problems
