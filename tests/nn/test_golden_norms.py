"""The norms of the detector against the published layers, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gw_jax import make_norm
from gw_jax.versions import enable_x64
from tests.detection import golden

GROUP_NORMS = ("gn", "gn_small_scale")
WHITENINGS = ("gw_roi_7x7", "gw_stem", "gw_tiny_scale", "gw_32_channels", "gw_rank_deficient")
# The reference's names of our arrays.
BUFFERS = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def make(case, dtype):
    """The layer of a case with its arrays, and the case's arrays."""
    arrays = golden.part(golden.load("ops/norm_layers"), case)
    name = case if case == "frozen_bn" else case[:2]
    options = {"num_groups": int(arrays["groups"])} if name == "gw" else {}
    layer = make_norm(name, arrays["input_nchw"].shape[1], param_dtype=dtype, rngs=nnx.Rngs(0), **options)
    for theirs, ours in BUFFERS.items():
        value = arrays.get(theirs, arrays.get(f"param_{theirs}"))
        if value is not None:
            getattr(layer, ours)[...] = jnp.asarray(value, dtype)
    return layer, arrays


def evaluate(case, dtype):
    """Output and gradients by the names of the file, and their expected values."""
    layer, arrays = make(case, dtype)
    graphdef, parameters, rest = nnx.split(layer, nnx.Param, ...)
    x, cotangent = (jnp.asarray(golden.nhwc(arrays[name]), dtype) for name in ("input_nchw", "cotangent"))

    @jax.jit
    def run(parameters, x):
        y, pullback = jax.vjp(lambda parameters, x: nnx.merge(graphdef, parameters, rest)(x), parameters, x)
        return y, *pullback(cotangent)

    y, gradient, grad_input = run(parameters, x)
    found = {"output": y, "grad_input": grad_input}
    found |= {f"grad_{theirs}": gradient[ours][...] for theirs, ours in BUFFERS.items() if ours in gradient}
    expected = {name: arrays[name] for name in ("output", "grad_input", "grad_weight", "grad_bias") if name in arrays}
    assert set(found) == set(expected)
    return found, {name: golden.nhwc(value) if value.ndim == 4 else value for name, value in expected.items()}


@pytest.mark.filterwarnings("ignore:group_whiten has")  # Some cases have fewer observations than groups.
@pytest.mark.parametrize("case", ["frozen_bn", *GROUP_NORMS, *WHITENINGS])
def test_float64(case):
    with enable_x64():
        found, expected = evaluate(case, jnp.float64)
        for name, value in expected.items():
            assert found[name].dtype == jnp.float64
            assert np.abs(found[name] - value).max() <= 1e-9 * np.abs(value).max(), name


@pytest.mark.filterwarnings("ignore:group_whiten has")
@pytest.mark.parametrize(
    "case",
    [
        "frozen_bn",
        "gn_small_scale",
        "gw_roi_7x7",
        "gw_tiny_scale",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("gn", "gw_stem", "gw_32_channels", "gw_rank_deficient")),
    ],
)
def test_float32(case):
    found, expected = evaluate(case, jnp.float32)
    for name, value in expected.items():
        tolerance = 1e-5 if name == "output" else 1e-4
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max(), name


@pytest.mark.parametrize(
    ("case", "attribute", "value"),
    [("frozen_bn", "epsilon", 1e-5), ("gw_tiny_scale", "epsilon", 1e-5), ("gw_stem", "num_iterations", 4)],
)
def test_typical_mistakes_are_caught(case, attribute, value, monkeypatch):
    """Mistakes that the detections of whole images hide, or show by chance only."""
    original = make

    def wrong(case, dtype):
        layer, arrays = original(case, dtype)
        setattr(layer, attribute, value)
        return layer, arrays

    monkeypatch.setitem(globals(), "make", wrong)
    found, expected = evaluate(case, jnp.float32)
    error = np.abs(found["output"] - expected["output"]).max() / np.abs(expected["output"]).max()
    assert error > 1e-3
