import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gw_jax import group_whiten
from gw_jax.ops.linear_map import linear_map


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    with quick_compilation():
        yield


def inputs(shape):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(size)) for size in (shape, shape[-1:], shape[-1:])]


@pytest.mark.parametrize(
    ("method", "num_iterations"),
    [
        pytest.param("newton", 1, marks=pytest.mark.slow),
        ("newton", 3),
        pytest.param("newton", 15, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("zca", 5, marks=pytest.mark.slow),
    ],
)
def test_default_whitening_has_forward_and_second_derivatives(float64, method, num_iterations):
    arguments, tangents = inputs((2, 3, 1, 8)), inputs((2, 3, 1, 8))[::-1]
    tangents = [tangents[2] + 1, tangents[0] - 1, tangents[1]]

    def derivatives(implementation, arguments, tangents):
        options = {"method": method, "num_iterations": num_iterations, "epsilon": 1e-3}

        def whiten(x, scale, bias):
            return group_whiten(x, 4, scale=scale, bias=bias, implementation=implementation, **options)

        def loss(x, scale):
            return (whiten(x, scale, arguments[2]) ** 3).sum()

        few = arguments[0][:1], arguments[1]
        per_sample = jax.vmap(jax.grad(lambda x: loss(x[None], arguments[1])))(arguments[0])
        reverse_twice = jax.jacrev(jax.grad(loss, (0, 1)), (0, 1))(*few)
        return jax.jvp(whiten, arguments, tangents), jax.hessian(loss, (0, 1))(*few), reverse_twice, per_sample

    chex.assert_trees_all_close(
        *(jax.jit(functools.partial(derivatives, name))(arguments, tangents) for name in ("auto", "plain")),
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_written_transpose_is_the_one_that_runs():
    def twice(scale, operand):
        return scale * 2 * operand

    def wrong_on_purpose(scale, cotangent):
        return scale * 5 * cotangent

    def apply(x):
        return linear_map(twice, wrong_on_purpose, jnp.float32(3), x, like=x)

    x = jnp.arange(4.0)
    chex.assert_trees_all_close(jax.jvp(apply, (x,), (x,)), (6 * x, 6 * x))
    for mapped in (apply, jax.vmap(apply), jax.jit(apply)):
        chex.assert_trees_all_close(jax.vjp(mapped, x)[1](x), (15 * x,))


def test_axes_of_vmap_may_be_missing_in_operand_or_residual():
    def multiply(matrix, x):
        return matrix @ x

    def transpose(matrix, y):
        return matrix.T @ y

    def apply(matrix, x):
        return linear_map(multiply, transpose, matrix, x, like=matrix @ x)

    rng = np.random.default_rng(0)
    matrices, vectors = jnp.asarray(rng.standard_normal((3, 2, 4)), "float32"), jnp.ones((3, 4))
    for axes in ((0, None), (None, 0), (0, 0)):
        matrix, x = (all_ if axis == 0 else all_[0] for all_, axis in zip((matrices, vectors), axes, strict=True))
        (found, pullback), (expected, truth) = (
            jax.vjp(functools.partial(jax.vmap(f, axes), matrix), x) for f in (apply, jnp.matmul)
        )
        chex.assert_trees_all_close((found, pullback(found)), (expected, truth(expected)), rtol=1e-6)
