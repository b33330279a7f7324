import jax.numpy as jnp
from flax import nnx

from gw_jax.nn import BatchNorm
from gw_jax.tree import by_path, map_by_path, variables


def test_leaves_by_path():
    tree = {"a": {"b": 1, "0": {"c": 2}}, "d": 3}
    assert by_path(tree) == {"a.0.c": 2, "a.b": 1, "d": 3}
    assert map_by_path(lambda path, leaf: f"{path}={leaf}", tree) == {
        "a": {"b": "a.b=1", "0": {"c": "a.0.c=2"}},
        "d": "d=3",
    }


def test_variables_of_a_model():
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), BatchNorm(3, rngs=nnx.Rngs(0)))
    found = variables(model)
    assert {path: leaf.shape for path, leaf in found.items() if "layers.0" in path} == {
        "layers.0.kernel": (2, 3),
        "layers.0.bias": (3,),
    }
    assert found["layers.1.var"].dtype == jnp.float32
