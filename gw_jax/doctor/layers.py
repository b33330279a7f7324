"""The Group Whitening layers of a network, and what ``implementation="auto"`` takes for each of them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax.doctor.report import Section
from gw_jax.models import create_model
from gw_jax.models.create_model import MNIST_NETWORKS, resolve_name
from gw_jax.ops import group_whitening
from gw_jax.ops.choice import Choice, choose_implementation
from gw_jax.ops.kernels.placement import batch_sharded_over

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of :func:`gw_jax.group_whiten` in a network, and what computes it here."""

    shape: tuple[int, ...]
    dtype: str
    num_groups: int
    method: str
    num_iterations: int
    epsilon: float
    relu: bool
    choice: Choice

    @property
    def label(self) -> str:
        """Its sizes for the report."""
        spatial = " x ".join(map(str, self.shape[1:]))
        return f"{spatial}, {self.num_groups} groups"


@dataclasses.dataclass(frozen=True)
class Network:
    """The network that is checked, as on the command line.

    Attributes:
        name: of :func:`gw_jax.create_model`.
        norm: name of the norm.
        batch_size: images on all devices.
        image_size: their edge in pixels.
        dtype: type of the activations.
        num_groups: of the norm; None for its default.
    """

    name: str
    norm: str
    batch_size: int
    image_size: int
    dtype: str
    num_groups: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(h, w, c)``."""
        grey = resolve_name(self.name, None)[0] in MNIST_NETWORKS
        return self.image_size, self.image_size, 1 if grey else 3

    def make(self) -> nnx.Module:
        """The network without values."""
        resolved = resolve_name(self.name, None)[0]
        sizes = {"image_size": self.image_size} if resolved in MNIST_NETWORKS else {}
        create: Any = create_model
        options = None if self.num_groups is None else {"num_groups": self.num_groups}
        arguments = {"norm": self.norm, "norm_options": options, "dtype": jnp.dtype(self.dtype), **sizes}
        return nnx.eval_shape(lambda: create(self.name, **arguments, rngs=nnx.Rngs(0)))

    @functools.cached_property
    def calls(self) -> dict[Call, int]:
        """The different calls of Group Whitening in one pass of the network, and how often each occurs."""
        return whitening_calls(self)


def whitening_calls(network: Network) -> dict[Call, int]:
    """Traces the network as the trainer does, for a batch that is sharded over all devices; nothing is computed."""
    found: dict[Call, int] = {}

    def observe(x: jax.Array, num_groups: int, **options: Any) -> Choice:
        choice = choose_implementation(x, num_groups, **options)
        known = {name: options[name] for name in ("method", "num_iterations", "epsilon", "relu")}
        call = Call(tuple(x.shape), x.dtype.name, num_groups, **known, choice=choice)
        found[call] = found.get(call, 0) + 1
        return choice

    with mock.patch.object(group_whitening, "choose_implementation", observe):
        traced(network, jax.eval_shape)
    return found


def traced(network: Network, trace: Callable[..., T]) -> T:
    """The result of ``trace(function, *arguments)`` for the forward pass of the network, as the trainer traces it."""
    graphdef, state = nnx.split(network.make())
    images = jax.ShapeDtypeStruct((network.batch_size, *network.image_shape), jnp.float32)
    with _sharded_over_all_devices():
        return trace(lambda state, images: nnx.merge(graphdef, state)(images), state, images)


@contextlib.contextmanager
def _sharded_over_all_devices() -> Iterator[None]:
    if jax.device_count() == 1:
        yield
        return
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
    with batch_sharded_over(mesh, "data"):
        yield


def check_layers(network: Network, section: Section) -> None:
    """What computes each of the network's different Group Whitening layers, and why."""
    section.add("network", f"{network.name}, norm {network.norm}, {network.dtype}")
    section.add("images", f"{network.batch_size} of {' x '.join(map(str, network.image_shape))}")
    if not network.calls:
        section.notes.append(f"The network has no Group Whitening layer with norm {network.norm}; the defaults have some.")
    reasons: dict[str, list[str]] = {}
    for call, count in network.calls.items():
        name = call.choice.implementation
        kernel = f" ({call.choice.spec.kernel})" if name == "kernel" and call.choice.spec else ""
        section.add(call.label, f"{count} x {name}{kernel}")
        reasons.setdefault(call.choice.reason, []).append(call.label)
    for reason, labels in reasons.items():
        where = "" if len(reasons) == 1 else f"{'; '.join(labels)}: "
        section.notes.append(f"{where}{reason}")
    section.data = {
        "layers": [
            {**dataclasses.asdict(call), "choice": call.choice.implementation, "reason": call.choice.reason, "count": count}
            for call, count in network.calls.items()
        ]
    }
