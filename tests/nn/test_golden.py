"""Every golden layer case: output, all gradients, buffers after each of three steps, evaluation output."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

_spec = importlib.util.spec_from_file_location("golden", pathlib.Path(__file__).with_name("golden.py"))
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)

BUFFERS = {"mean": "running_mean", "var": "running_var"}


def assert_close(result, expected):
    expected = np.asarray(expected)
    assert np.abs(np.asarray(result) - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore:num_groups=64 exceeds")
@pytest.mark.parametrize("case", sorted(golden.CASES))
def test_case(float64, case):
    layer = golden.make_layer(case)
    layer.train()
    graphdef, *start = nnx.split(layer, nnx.Param, nnx.BatchStat)
    params, stats = (nnx.to_pure_dict(state) for state in start)
    for step in range(3):
        x, upstream = golden.array(case, f"step{step}/x"), golden.array(case, f"step{step}/gy")

        def forward(params, x, stats=stats):
            model = nnx.merge(graphdef, params, stats)
            y = model(x)
            _, _, new = nnx.split(model, nnx.Param, nnx.BatchStat)
            return y, nnx.to_pure_dict(new)

        y, pullback, stats = jax.vjp(forward, params, jnp.asarray(x), has_aux=True)
        params_gradient, x_gradient = pullback(jnp.asarray(upstream))
        assert y.dtype == jnp.float64
        assert_close(y, golden.array(case, f"step{step}/y"))
        assert_close(x_gradient, golden.array(case, f"step{step}/gx"))
        assert len(params_gradient) == sum(golden.has(case, f"param/{name}") for name in ("weight", "bias"))
        for ours, gradient in params_gradient.items():
            theirs = {"scale": "weight", "bias": "bias"}[ours]
            assert_close(gradient, golden.ARRAYS[f"{case}/step{step}/gparam/{theirs}"].reshape(-1))
        assert len(stats) == sum(golden.has(case, f"step{step}/buffer/{name}") for name in BUFFERS.values())
        for ours, value in stats.items():
            assert_close(value, golden.ARRAYS[f"{case}/step{step}/buffer/{BUFFERS[ours]}"])
    model = nnx.merge(graphdef, params, stats)
    model.eval()
    assert_close(model(jnp.asarray(golden.array(case, "step2/x"))), golden.array(case, "eval/y"))
