"""Single norms of the reference: every golden case in, three steps, and out again; and states that do not fit."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gw_jax.convert import norm_from_torch, to_torch_state
from gw_jax.errors import CheckpointError

DIRECTORY = pathlib.Path(__file__).parents[1] / "golden"
CASES = json.loads((DIRECTORY / "norms.json").read_text())
ARRAYS = np.load(DIRECTORY / "norms.npz")


def part(case, prefix):
    """The arrays of ``case`` whose names start with ``prefix``, by the rest of their names."""
    start = f"{case}/{prefix}/"
    return {name.removeprefix(start): ARRAYS[name] for name in ARRAYS.files if name.startswith(start)}


def channels_last(array):
    return jnp.asarray(np.moveaxis(array, 1, -1))


def assert_close(result, expected):
    assert np.shape(result) == np.shape(expected)
    assert np.abs(np.asarray(result) - expected).max() <= 1e-9 * max(np.abs(expected).max(), 1e-300)


def layer_of(case, state):
    entry = CASES[case]
    return norm_from_torch(entry["norm"], entry["C"], entry["cfg"], state)


@pytest.mark.filterwarnings("ignore:num_groups=64 exceeds")
@pytest.mark.parametrize("case", sorted(CASES))
def test_golden_case(float64, quick, case):
    layer = layer_of(case, part(case, "param"))
    layer.train()
    graphdef, *states = nnx.split(layer, nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, states)

    @jax.jit
    def step_of(params, stats, x, upstream):
        def forward(params, x):
            model = nnx.merge(graphdef, params, stats)
            return model(x), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        y, pullback, new_stats = jax.vjp(forward, params, x, has_aux=True)
        return y, *pullback(upstream), new_stats

    for step in range(3):
        x, upstream = (channels_last(ARRAYS[f"{case}/step{step}/{name}"]) for name in ("x", "gy"))
        y, gradient, x_gradient, stats = step_of(params, stats, x, upstream)
        assert y.dtype == jnp.float64
        assert_close(np.moveaxis(np.asarray(y), -1, 1), ARRAYS[f"{case}/step{step}/y"])
        assert_close(np.moveaxis(np.asarray(x_gradient), -1, 1), ARRAYS[f"{case}/step{step}/gx"])
        expected = part(case, f"step{step}/gparam")
        of_gradient = {"weight": "scale", "bias": "bias"}
        assert set(gradient) == {of_gradient[name] for name in expected}
        for name, value in expected.items():
            assert_close(np.asarray(gradient[of_gradient[name]]), value.reshape(-1))
        layer = nnx.merge(graphdef, params, stats)
        state = to_torch_state(layer)
        buffers = part(case, f"step{step}/buffer")
        parameters = part(case, "param")
        assert set(state) == {*parameters, *buffers}
        for name, value in buffers.items():
            assert state[name].dtype == value.dtype
            assert_close(state[name], value)
        # Out and in again is the same layer.
        layer = layer_of(case, state)
        for name, value in to_torch_state(layer).items():
            np.testing.assert_array_equal(value, state[name], strict=True)
    layer.eval()
    y = np.moveaxis(np.asarray(layer(channels_last(ARRAYS[f"{case}/step2/x"]))), -1, 1)
    assert_close(y, ARRAYS[f"{case}/eval/y"])


def test_the_shape_of_scale_and_bias_is_kept():
    for shape in ((1, 16), (1, 16, 1, 1), (1, 16, 1, 1, 1)):
        state = {"weight": np.ones(shape, np.float32), "bias": np.zeros(shape, np.float32)}
        layer = norm_from_torch("IGWItN", 16, {"num_groups": 4}, state)
        assert layer.scale.shape == (16,)
        assert {name: value.shape for name, value in to_torch_state(layer).items()} == {"weight": shape, "bias": shape}


def test_types_follow_the_state_unless_given():
    state = {"weight": np.ones((1, 8, 1, 1), np.float32), "bias": np.zeros((1, 8, 1, 1), np.float32)}
    assert norm_from_torch("IGWItN", 8, {"num_groups": 4}, state).scale.dtype == jnp.float32
    layer = norm_from_torch("IGWItN", 8, {"num_groups": 4}, state, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    assert layer.scale.dtype == layer(jnp.ones((1, 2, 2, 8))).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("weight"), "1 missing: weight"),
        (lambda s: s.pop("iterNorm_Groups.1.running_wm"), "1 missing: iterNorm_Groups.1.running_wm"),
        (lambda s: s.update(gamma=s["bias"]), "1 that the network does not have: gamma"),
        (
            lambda s: s.update(bias=s["bias"][:, :3]),
            r"1 of another shape: bias is \[1, 3, 1, 1\] and should be \[1, 10, 1, 1\]",
        ),
        (lambda s: s["bias"].__setitem__((0, 1), np.nan), "'bias' of the state of ItN .* holds 1 values that are NaN"),
        (lambda s: s["bias"].__setitem__((0, 1), np.inf), "NaN or infinite, of 10"),
    ],
)
def test_states_that_do_not_fit(change, message):
    state = to_torch_state(norm_from_torch("ItN", 10, {"num_channels": 8}, {
        "weight": np.ones((1, 10, 1, 1), np.float32), "bias": np.zeros((1, 10, 1, 1), np.float32),
    }))  # fmt: skip
    change(state)
    with pytest.raises(CheckpointError, match=message):
        norm_from_torch("ItN", 10, {"num_channels": 8}, state)
