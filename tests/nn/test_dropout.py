import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax.nn import Dropout


def test_values_are_dropped_or_scaled():
    layer, x = Dropout(0.25), jnp.ones((100, 100))
    y = np.asarray(layer(x, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75])
    assert abs((y == 0).mean() - 0.25) < 0.02
    np.testing.assert_array_equal(layer(x, jax.random.key(0)), y)
    assert not np.array_equal(layer(x, jax.random.key(1)), y)


def test_evaluation_and_rate_zero_change_nothing():
    x = jnp.ones(3)
    layer = Dropout(0.5)
    layer.eval()
    assert layer(x) is x
    assert Dropout(0.0)(x) is x


def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"dropout_key=jax.random.key\(...\)"):
        Dropout(0.5)(jnp.ones(3))
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"dropout={rate}"):
            Dropout(rate)
