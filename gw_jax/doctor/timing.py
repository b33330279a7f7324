"""Time of Group Whitening beside BatchNorm on the device, and a small training step."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax.doctor.layers import Network
from gw_jax.doctor.report import Section
from gw_jax.nn import BatchNorm, GroupWhitening

REPETITIONS = 3
# A CPU takes seconds for a whole batch of a large layer.
MOST_VALUES_ON_CPU = 1 << 20


def check_speed(network: Network, section: Section) -> None:
    """Forward and backward pass of each different layer, with Group Whitening and with BatchNorm."""
    total = {"gw": 0.0, "bn": 0.0}
    on_cpu = jax.default_backend() == "cpu"
    for call, count in network.calls.items():
        share = call.shape[0] // jax.device_count() or 1
        samples = min(share, max(2, MOST_VALUES_ON_CPU // int(np.prod(call.shape[1:])))) if on_cpu else share
        x = jax.random.normal(jax.random.key(0), (samples, *call.shape[1:]), call.dtype)
        options: dict[str, Any] = {"method": call.method, "num_iterations": call.num_iterations, "epsilon": call.epsilon}
        channels = call.shape[-1]
        gw = GroupWhitening(
            channels, num_groups=call.num_groups, implementation=call.choice.implementation, **options, rngs=nnx.Rngs(0)
        )
        seconds = {"gw": _seconds(gw, x), "bn": _seconds(BatchNorm(channels, rngs=nnx.Rngs(0)), x)}
        for name, found in seconds.items():
            total[name] += count * found
        text = (
            f"{1e3 * seconds['gw']:.2f} ms, BatchNorm {1e3 * seconds['bn']:.2f} ms: {seconds['gw'] / seconds['bn']:.1f} x"
        )
        section.add(f"{samples} x {call.label}", text)
        section.data[call.label] = seconds | {"samples": samples}
    if total["bn"]:
        ratio = total["gw"] / total["bn"]
        section.add(
            "all of them", f"{ratio:.1f} times the time of BatchNorm in these layers; a network also has convolutions"
        )


def _seconds(layer: nnx.Module, x: jax.Array) -> float:
    """Shortest time of the gradients of a layer with respect to input and parameters."""
    graphdef, state = nnx.split(layer)

    @jax.jit
    def step(state: Any, x: jax.Array) -> Any:
        def loss(state: Any, x: jax.Array) -> jax.Array:
            y = nnx.merge(graphdef, state)(x)
            return (y * y * x).sum(dtype=jnp.float32)

        return jax.grad(loss, argnums=(0, 1), allow_int=True)(state, x)

    return _shortest(lambda: jax.block_until_ready(step(state, x)))


def _shortest(run: Callable[[], Any]) -> float:
    run()
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


class _Small(nnx.Module):
    """A convolution, Group Whitening and a linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.norm = GroupWhitening(32, num_groups=16, rngs=rngs)
        self.head = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm(self.conv(x), relu=True).mean((1, 2)))


def check_training(section: Section) -> None:
    """Some steps of gradient descent of a small network on two kinds of noise: its loss has to fall."""
    parts: Any = nnx.split(_Small(nnx.Rngs(0)), nnx.Param, ...)
    graphdef, params, rest = parts
    labels = jnp.arange(16) % 2
    noise = jax.random.normal(jax.random.key(0), (16, 16, 16, 3))
    # The first kind is white, the second varies slowly.
    smooth = (noise + jnp.roll(noise, 1, 1) + jnp.roll(noise, 1, 2)) / 3
    images = jnp.where(labels[:, None, None, None] == 0, noise, smooth)

    @jax.jit
    def step(params: Any) -> tuple[jax.Array, Any]:
        def loss(params: Any) -> jax.Array:
            logits = nnx.merge(graphdef, params, rest)(images)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.3 * g, params, gradients)

    losses = []
    for _ in range(11):
        value, params = step(params)
        losses.append(float(value))
    section.add("loss", f"{losses[0]:.4f}, after 10 steps {losses[-1]:.4f}")
    section.data = {"losses": losses}
    if not losses[-1] < losses[0]:  # NaN, too.
        section.problems.append(f"Training a small network does not lower its loss: {losses[0]:.4f} to {losses[-1]:.4f}.")
