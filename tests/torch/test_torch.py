"""Layers and optimiser beside PyTorch's own, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gw_jax import make_norm
from gw_jax.train import OptimizerConfig
from gw_jax.train.optimizer import make_optimizer

torch = pytest.importorskip("torch", reason="PyTorch, an optional extra that brings gigabytes, is not installed")


@pytest.mark.parametrize("name", ["bn", "gn"])
def test_norms(float64, name):
    theirs = {"bn": torch.nn.BatchNorm2d(12), "gn": torch.nn.GroupNorm(4, 12)}[name].double()
    ours = make_norm(name, 12, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **({"num_groups": 4} if name == "gn" else {}))
    rng = np.random.default_rng(0)
    for train in (True, True, False):
        theirs.train(train)
        ours.train() if train else ours.eval()
        x = rng.standard_normal((5, 12, 4, 3)) * 2 + 1
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(np.moveaxis(ours(jnp.asarray(np.moveaxis(x, 1, -1))), -1, 1), expected, atol=1e-12)
    if name == "bn":
        np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-12)
        np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.slow
def test_sgd(float64, nesterov):
    config = OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    rng = np.random.default_rng(0)
    start, target = rng.standard_normal((2, 6))
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    params = {"w": jnp.asarray(start)}
    state = optimizer.init(params)
    for _ in range(5):
        reference.zero_grad()
        ((theirs - torch.from_numpy(target)) ** 2).sum().backward()
        reference.step()
        gradient = jax.grad(lambda p: ((p["w"] - target) ** 2).sum())(params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], theirs.detach().numpy(), rtol=1e-12)
