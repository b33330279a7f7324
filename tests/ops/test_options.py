"""Options and inputs of group whitening that are clamped, warned of or refused."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax import group_whiten
from gw_jax.versions import enable_x64
from tests.helpers.whitening import images


def test_more_groups_than_channels_are_clamped_with_a_warning():
    x = jnp.asarray(images((2, 6, 6, 16)))
    with pytest.warns(UserWarning, match="num_groups=64 exceeds the 16 channels"):
        y = group_whiten(x, 64)
    np.testing.assert_array_equal(y, group_whiten(x, 16))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_groups": 5}, ValueError, r"16 channels cannot be cut into num_groups=5 .* \[1, 2, 4, 8, 16\]"),
        ({"num_groups": 0}, ValueError, "num_groups=0; it must be 1 or more"),
        ({"method": "cholesky"}, ValueError, "method='cholesky' is not known; choose one of newton, zca"),
        ({"num_iterations": -1}, ValueError, "num_iterations=-1"),
        ({"epsilon": -1e-3}, ValueError, "epsilon=-0.001"),
        ({"method": "zca", "epsilon": 0.0}, ValueError, "epsilon must be finite and > 0"),
        ({"mask": np.ones((2, 6, 5), bool)}, ValueError, r"mask has shape \(2, 6, 5\) .* must be \(2, 6, 6\)"),
        ({"scale": np.ones(8, np.float32)}, ValueError, r"scale has shape \(8,\)"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        group_whiten(jnp.zeros((2, 6, 6, 16)), **{"num_groups": 4, **options})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((2, 4, 4, 16), np.uint8), TypeError, "type uint8 .* normalise"),
        (np.zeros(16, np.float32), ValueError, r"shape \(16,\).* at least 2 axes"),
        (np.zeros((2, 0), np.float32), ValueError, "no channels"),
    ],
)
def test_bad_inputs_are_named(x, error, message):
    with pytest.raises(error, match=message):
        group_whiten(jnp.asarray(x), 4)


def test_fewer_observations_than_groups_are_warned_of_once():
    x = jnp.asarray(images((2, 2, 1, 22)))
    with pytest.warns(UserWarning, match="2 observations for each of 22 groups, .* not white"):
        group_whiten(x, 22)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group_whiten(x, 22)


def test_a_float64_array_is_computed_in_float32_with_one_warning():
    x = images((2, 8, 8, 16), dtype=np.float64)
    with pytest.warns(UserWarning, match=r"float64 .* Pass x.astype\(numpy.float32\)") as seen:
        y = group_whiten(x, 4)
    assert len(seen) == 1
    assert y.dtype == jnp.float32
    with enable_x64(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert group_whiten(x, 4).dtype == jnp.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 8.0}, "num_groups=8.0 is a float; it must be an integer"),
        ({"num_groups": True}, "num_groups=True is a bool"),
        ({"num_iterations": 2.5}, "num_iterations=2.5 is a float"),
        ({"epsilon": float("nan")}, "epsilon=nan with method='newton'; epsilon must be finite and >= 0"),
        ({"epsilon": float("inf"), "method": "zca"}, "epsilon=inf with method='zca'; epsilon must be finite and > 0"),
    ],
)
def test_options_of_the_wrong_type_or_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        group_whiten(jnp.zeros((2, 4, 4, 16)), **{"num_groups": 4, **options})
