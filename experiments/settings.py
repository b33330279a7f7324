"""Choices that all experiments share: networks, norms, seeds, learning rates and lengths."""

import dataclasses
from typing import Any

from flax import nnx

from gw_jax import create_model

DEPTH, WIDTH, NUM_CLASSES = 4, 256, 10
# Learning rates are chosen on a seed that no reported run has.
GRID_SEED = 1000
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm of :func:`gw_jax.make_norm` with its options, and its name in tables and figures."""

    label: str
    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def mlp(self, rngs: nnx.Rngs) -> nnx.Module:
        """The reference's MLP of 4 hidden layers of 256 with this norm, without scale and bias."""
        options: dict[str, Any] = dict(self.options)
        if self.name != "none":
            options |= {"use_scale": False, "use_bias": False}
        sizes = {"depth": DEPTH, "width": WIDTH, "num_classes": NUM_CLASSES}
        return create_model("mlp", norm=self.name, norm_options=options, **sizes, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Length:
    """How long and how often an experiment trains; ``quick`` is for tests: it shows that the code runs, nothing else."""

    steps: int
    seeds: int
    rates: tuple[float, ...] = LEARNING_RATES

    @property
    def reported_seeds(self) -> list[int]:
        """The seeds of the reported runs."""
        return list(range(self.seeds))


QUICK = Length(steps=3, seeds=2, rates=(0.03, 0.3))


def group_norm(groups: int) -> Norm:
    """Group Normalization."""
    return Norm(f"GN, {groups} groups", "gn", (("num_groups", groups),))


def group_whitening(groups: int, iterations: int = 5) -> Norm:
    """Group Whitening by Newton-Schulz iteration."""
    return Norm(f"GW, {groups} groups", "gw", (("num_groups", groups), ("num_iterations", iterations)))


def batch_whitening(name: str, channels: int) -> Norm:
    """DBN (``dbn``) or IterNorm (``iternorm``) in blocks of ``channels``."""
    kind = {"dbn": "DBN", "iternorm": "IterNorm"}[name]
    size = "full" if channels == WIDTH else f"blocks of {channels}"
    return Norm(f"{kind}, {size}", name, (("channels_per_group", channels),))


BATCH_NORM = Norm("BN", "bn")
NO_NORM = Norm("no norm", "none")
