"""The checks of ``benchmarks/parity.py``: operations on the device at hand against their definition in float64."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from gw_jax import group_whiten, make_norm
from gw_jax.nn import norm_options
from gw_jax.ops import inverse_sqrt_newton, inverse_sqrt_zca
from gw_jax.ops.kernel_check import BOUNDS
from gw_jax.versions import enable_x64

RESULTS = ("y", "dx", "dscale", "dbias")


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of :func:`gw_jax.group_whiten`; ``affine``: whether there are scale and bias."""

    shape: tuple[int, ...]
    num_groups: int
    dtype: str
    relu: bool = False
    num_iterations: int = 5
    epsilon: float = 0.0
    affine: bool = True


def make_input(shape: Sequence[int], dtype: str, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Correlated channels with a mean, scale, bias, and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((shape[-1], shape[-1])) / shape[-1] ** 0.5
    x = rng.standard_normal(shape, np.float32) @ mixing.astype(np.float32) + 0.5
    scale, bias = rng.standard_normal((2, shape[-1])).astype(np.float32)
    cotangent = rng.standard_normal(shape, np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(scale + 1), jnp.asarray(bias), jnp.asarray(cotangent, dtype)


@functools.cache
def _program(case: Case, implementation: str, relu: bool) -> Callable[..., tuple[jax.Array, ...]]:
    def whiten(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        options: dict[str, Any] = {"num_iterations": case.num_iterations, "epsilon": case.epsilon, "relu": relu}
        return group_whiten(x, case.num_groups, scale=scale, bias=bias, implementation=implementation, **options)

    @jax.jit
    def run(x: jax.Array, scale: jax.Array, bias: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        if case.affine:
            y, pullback = jax.vjp(whiten, x, scale, bias)
        else:
            y, pullback = jax.vjp(lambda x: whiten(x, None, None), x)
        return y, *pullback(cotangent)

    return run


def outputs(case: Case, implementation: str, arrays: Sequence[jax.Array], *, relu: bool) -> tuple[jax.Array, ...]:
    """The output and the gradients of input, scale and bias, compiled as one program."""
    return _program(case, implementation, relu)(*arrays)


def in_float64(arrays: Sequence[jax.Array]) -> list[np.ndarray]:
    """The same values in float64, on the host."""
    return [np.asarray(array.astype(jnp.float32), np.float64) for array in arrays]


def numpy_whiten(case: Case, x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The definition in NumPy, in the form in which the paper has it; without the ReLU."""
    n, g = x.shape[0], case.num_groups
    rows = np.moveaxis(x.reshape(n, -1, g, x.shape[-1] // g), 2, 1).reshape(n, g, -1)
    rows = rows - rows.mean(-1, keepdims=True)
    covariance = rows @ rows.swapaxes(1, 2) / rows.shape[-1] + case.epsilon * np.eye(g)
    trace = np.trace(covariance, axis1=1, axis2=2)[:, None, None]
    p = np.broadcast_to(np.eye(g), covariance.shape)
    for _ in range(case.num_iterations):
        p = 1.5 * p - 0.5 * (p @ p @ p) @ (covariance / trace)
    white = (p / np.sqrt(trace)) @ rows
    y = np.moveaxis(white.reshape(n, g, -1, x.shape[-1] // g), 1, 2).reshape(x.shape)
    return y * scale + bias if case.affine else y


def errors(found: Sequence[Any], truth: Sequence[np.ndarray]) -> dict[str, float]:
    """The largest difference over the largest value of the truth, for every result."""
    pairs = zip(RESULTS, [np.asarray(a, np.float64) for a in found], truth, strict=False)
    return {name: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)) for name, a, b in pairs}


def within(found: dict[str, float], dtype: str) -> bool:
    """Whether the errors keep :data:`BOUNDS`; NaN does not."""
    value, gradient = BOUNDS[dtype]
    return all(error <= (value if name == "y" else gradient) for name, error in found.items())


def is_no_kernel(error: Exception) -> bool:
    """Whether the error is that of ``implementation="kernel"`` for an input without one, which is no fault."""
    return isinstance(error, ValueError) and str(error).startswith('implementation="kernel" with')


def check_whitening(case: Case, implementations: Sequence[str]) -> dict[str, Any]:
    """Values and gradients of every implementation beside float64.

    With a ReLU, gradients are compared for the cut that the implementation itself made: near zero, rounding decides it.
    """
    *arrays, cotangent = make_input(case.shape, case.dtype)
    exact = in_float64((*arrays, cotangent))
    result: dict[str, Any] = {**dataclasses.asdict(case), "errors": {}}
    definition = dataclasses.replace(case, relu=False)
    with enable_x64():
        truth = [np.asarray(a) for a in outputs(definition, "plain", [jnp.asarray(a) for a in exact], relu=False)]
    result["truth_against_numpy"] = errors([truth[0]], [numpy_whiten(case, *exact[:3])])["y"]
    for implementation in implementations:
        try:
            found = [
                np.asarray(a.astype(jnp.float32))
                for a in outputs(case, implementation, (*arrays, cotangent), relu=case.relu)
            ]
        except Exception as error:  # Of the compiler, or no kernel for this input; the other checks continue.
            if is_no_kernel(error):
                result["errors"][implementation] = "no kernel"
                continue
            result["errors"][implementation] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        expected = truth
        if case.relu:
            cut = np.where(found[0] > 0, exact[3], 0)
            with enable_x64():
                inputs = [jnp.asarray(a) for a in (*exact[:3], cut)]
                expected = [np.asarray(a) for a in outputs(definition, "plain", inputs, relu=False)]
            expected[0] = np.maximum(expected[0], 0)
        result["errors"][implementation] = errors(found, expected)
    ok = {name: isinstance(e, dict) and within(e, case.dtype) for name, e in result["errors"].items() if e != "no kernel"}
    return result | {"ok": ok, "passed": all(ok.values()) and result["truth_against_numpy"] < 1e-9}


def _bits_equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(np.asarray(p), np.asarray(q), equal_nan=True) for p, q in zip(a, b, strict=True))


def _nearly_equal(a: Any, b: Any) -> bool:
    values = [(np.asarray(p, np.float32), np.asarray(q, np.float32)) for p, q in zip(a, b, strict=True)]
    return all(np.abs(p - q).max() <= 2e-5 * np.abs(q).max() for p, q in values)


def check_hard_inputs(case: Case, implementation: str) -> dict[str, Any]:
    """NaN and infinity stay in their sample, constant samples give the bias, magnitudes, repeated runs, transformations."""
    x, scale, bias, cotangent = make_input(case.shape, case.dtype)
    run = functools.partial(outputs, case, implementation, relu=case.relu)
    clean = run((x, scale, bias, cotangent))
    found: dict[str, Any] = {
        "repeated_runs_are_equal": all(_bits_equal(clean, run((x, scale, bias, cotangent))) for _ in range(3))
    }

    for name, value in (("nan", jnp.nan), ("inf", jnp.inf)):
        bad = run((x.at[2, -1, -1, 3].set(value), scale, bias, cotangent))
        others = np.arange(case.shape[0]) != 2
        found[f"{name}_stays_in_its_sample"] = _bits_equal([a[others] for a in bad[:2]], [a[others] for a in clean[:2]])
        found[f"{name}_is_seen_in_its_sample"] = bool(np.isnan(np.asarray(bad[0][2], np.float32)).any())

    # A value whose sum over many positions is not exact.
    constant = run((x.at[1].set(jnp.asarray(0.1, case.dtype)).at[3].set(0), scale, bias, cotangent))
    floor = jnp.maximum(bias, 0) if case.relu else bias
    expected = np.broadcast_to(np.asarray(floor.astype(x.dtype).astype(jnp.float32)), case.shape[1:])
    found["constant_samples_give_the_bias"] = all(
        np.allclose(np.asarray(constant[0][sample].astype(jnp.float32)), expected, rtol=1e-6, atol=0) for sample in (1, 3)
    )
    found["constant_samples_have_finite_gradients"] = all(np.isfinite(np.asarray(a, np.float32)).all() for a in constant)

    plain_case = dataclasses.replace(case, relu=False)
    for magnitude, offset in ((1e15, 0.0), (1e10, 0.0), (1e-10, 0.0), (1e-15, 0.0), (1.0, 100.0)):
        large = (x.astype(jnp.float32) * magnitude + offset).astype(x.dtype)
        arrays = (large, scale, bias, cotangent)
        with enable_x64():
            truth = [
                np.asarray(a)
                for a in outputs(plain_case, "plain", [jnp.asarray(a) for a in in_float64(arrays)], relu=False)
            ]
        for name in (implementation, "plain"):
            seen = errors(outputs(plain_case, name, arrays, relu=False), truth)
            found[f"errors_at_{magnitude:g}_plus_{offset:g}_{name}"] = seen

    def forward(x: jax.Array) -> jax.Array:
        return group_whiten(x, case.num_groups, scale=scale, bias=bias, relu=case.relu, implementation=implementation)

    mesh, data = Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data")
    # XLA may choose another product for another batch; a kernel does the same for every sample.
    equal = _bits_equal if implementation == "kernel" else _nearly_equal
    stacked = jnp.stack([x, 2 * x + 1])
    found["vmap_is_equal"] = equal(jax.jit(jax.vmap(forward))(stacked), [jax.jit(forward)(one) for one in stacked])
    sharded = jax.jit(jax.shard_map(forward, mesh=mesh, in_specs=data, out_specs=data))
    found["shard_map_is_equal"] = equal([sharded(x)], [clean[0]])
    gradient = jax.jit(
        jax.shard_map(
            jax.grad(lambda x: (forward(x).astype(jnp.float32) ** 2).sum()), mesh=mesh, in_specs=data, out_specs=data
        )
    )
    found["gradient_in_shard_map_is_finite"] = bool(np.isfinite(np.asarray(gradient(x), np.float32)).all())
    return {
        **dataclasses.asdict(case),
        "implementation": implementation,
        **found,
        "passed": all(value for value in found.values() if isinstance(value, bool)),
    }


def _layer_outputs(
    name: str, shape: tuple[int, ...], arrays: dict[str, Any], dtype: Any, train: bool
) -> dict[str, np.ndarray]:
    options: dict[str, Any] = {"num_groups": 16} if "num_groups" in norm_options(name) else {}
    if "channels_per_group" in norm_options(name):
        options = {"channels_per_group": 16}
    layer = make_norm(name, shape[-1], rngs=nnx.Rngs(0), use_scale=True, use_bias=True, param_dtype=dtype, **options)
    layer.scale[...], layer.bias[...] = jnp.asarray(arrays["scale"], dtype), jnp.asarray(arrays["bias"], dtype)
    layer.train() if train else layer.eval()
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def run(params: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        def forward(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            model = nnx.merge(graphdef, params, rest, copy=True)
            y = model(x)
            return y, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        y, pullback, stats = jax.vjp(forward, params, x, has_aux=True)
        dparams, dx = pullback(cotangent)
        return {"y": y, "dx": dx, **nnx.to_pure_dict(dparams), **{f"new_{k}": v for k, v in stats.items()}}

    found = run(params, jnp.asarray(arrays["x"], dtype), jnp.asarray(arrays["cotangent"], dtype))
    return {key: np.asarray(value, np.float64) for key, value in found.items()}


def check_layer(name: str, shape: tuple[int, ...], *, train: bool) -> dict[str, Any]:
    """A normalisation layer in float32 beside itself in float64: output, gradients, new running statistics."""
    x, scale, bias, cotangent = in_float64(make_input(shape, "float32"))
    arrays = {"x": x, "scale": scale, "bias": bias, "cotangent": cotangent}
    with enable_x64():
        truth = _layer_outputs(name, shape, arrays, jnp.float64, train)
    found = _layer_outputs(name, shape, arrays, jnp.float32, train)
    seen = {key: float(np.abs(found[key] - truth[key]).max() / max(np.abs(truth[key]).max(), 1e-30)) for key in truth}
    return {"norm": name, "shape": list(shape), "train": train, "errors": seen, "passed": max(seen.values()) <= 1e-4}


def check_inverse_sqrt(method: str, num_iterations: int, condition: float) -> dict[str, Any]:
    """An inverse square root of 64 x 64 matrices, and its derivative, in float32 beside float64."""
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.standard_normal((4, 64, 64)))
    covariance = (vectors * np.geomspace(1, 1 / condition, 64)) @ vectors.swapaxes(1, 2)
    direction = rng.standard_normal((4, 64, 64))
    direction = direction + direction.swapaxes(1, 2)
    function: Callable[[jax.Array], jax.Array] = (
        functools.partial(inverse_sqrt_newton, num_iterations=num_iterations) if method == "newton" else inverse_sqrt_zca
    )

    def run(dtype: Any) -> list[np.ndarray]:
        y, pullback = jax.jit(lambda c: jax.vjp(function, c))(jnp.asarray(covariance, dtype))
        return [np.asarray(y, np.float64), np.asarray(pullback(jnp.asarray(direction, dtype))[0], np.float64)]

    with enable_x64():
        truth = run(jnp.float64)
    seen = errors(run(jnp.float32), truth)
    result = {"method": method, "num_iterations": num_iterations, "condition": condition, "errors": seen}
    # Both lose digits in proportion to the condition, on every device alike.
    return result | {"passed": max(seen.values()) <= 1e-5 * max(1, condition / 10)}
