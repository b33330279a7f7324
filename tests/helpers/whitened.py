"""The toy task with Group Whitening, whose kernel on a pretended GPU is right or, on one host, wrong."""

import dataclasses
import json
import os

import jax
from flax import nnx

from gw_jax.nn import GroupWhitening
from tests.helpers import pretend, toy


class WhitenedModel(nnx.Module):
    """Two layers with Group Whitening of 4 x 4 x 16 between them."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 256, rngs=rngs)
        self.norm = GroupWhitening(16, num_groups=16, implementation="auto", rngs=rngs)
        self.head = nnx.Linear(256, 1, rngs=rngs)

    def __call__(self, x):
        y = self.norm(self.hidden(x).reshape(-1, 4, 4, 16), relu=True)
        return self.head(y.reshape(-1, 256))[:, 0]


class WhitenedTask(toy.ToyTask):
    def make_model(self, rngs):
        return WhitenedModel(rngs)


@dataclasses.dataclass(slots=True, kw_only=True)
class WhitenedConfig(toy.ToyConfig):
    def make_task(self):
        return WhitenedTask(self)


def make_config():
    # In a process of its own: index of the process, and what is wrong there.
    wrong = json.loads(os.environ.get("PRETEND_WRONG", "null"))
    if wrong is not None:
        pretend.install()
        jax.config.update("jax_disable_most_optimizations", True)
        before = pretend.kernels._MODULES["gpu_triton"].forward

        def forward(spec, x, scale, bias):
            (y,) = before(spec, x, scale, bias)
            return (y.at[:, 0, 0, 3].multiply(-1) if jax.process_index() == wrong else y,)

        pretend.kernels._MODULES["gpu_triton"].forward = forward
    values = {field.name: getattr(toy.make_config(), field.name) for field in dataclasses.fields(toy.ToyConfig)}
    return WhitenedConfig(**values)
