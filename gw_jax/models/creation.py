"""The record of a network's construction: the arguments of ``create_model``, which the network remembers."""

import copy
import functools
from collections.abc import Callable
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

# The attribute of a network that holds its record.
RECORD = "created_by"


class CreationRecord:
    """The arguments of :func:`gw_jax.create_model` that made a network.

    All records are equal: how a network was made is no part of what it computes, so it changes no comparison of graph
    definitions and no cache of ``jit``.

    Attributes:
        arguments: those that were given, without types and generators.
        dtype: type of the activations.
        param_dtype: type of the parameters, or None where it was not given.
    """

    def __init__(self, arguments: dict[str, Any], dtype: DTypeLike | None, param_dtype: DTypeLike | None):
        self.arguments = copy.deepcopy(arguments)
        self.dtype = dtype
        self.param_dtype = param_dtype

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CreationRecord)

    def __hash__(self) -> int:
        return hash(CreationRecord)


def remember_arguments(create: Callable[..., nnx.Module]) -> Callable[..., Any]:
    """Makes the networks of ``create(name, **arguments)`` remember name and arguments."""

    @functools.wraps(create)
    def create_and_record(name: str, **arguments: Any) -> nnx.Module:
        model = create(name, **arguments)
        types = {key: arguments.pop(key, None) for key in ("dtype", "param_dtype", "rngs")}
        record = CreationRecord({"name": name, **arguments}, types["dtype"], types["param_dtype"])
        setattr(model, RECORD, record)
        return model

    return create_and_record
