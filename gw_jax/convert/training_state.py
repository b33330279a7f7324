"""The state of a training run in a training dict: epochs, momentum, learning rate."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gw_jax.convert.entries import Entry
from gw_jax.convert.fill import checked, listed
from gw_jax.convert.torch_file import to_array
from gw_jax.errors import CheckpointError, shown
from gw_jax.models.pretrained import TrainingState


def read_training_state(
    training: Mapping[str, Any], table: Sequence[Entry], shapes: Mapping[str, Any], source: str
) -> tuple[TrainingState, list[str]]:
    """The state of the run that wrote ``training``, and notices of what was left out of it.

    Args:
        training: a training dict without its state dict.
        table: the entries of the network.
        shapes: shapes and types of its arrays, by path.
        source: the file, for messages.

    Raises:
        CheckpointError: the momentum belongs to another network, or is not finite; a value that must be a number is none.
    """
    notices: list[str] = []
    optimizer = training.get("optimizer")
    if not isinstance(optimizer, dict):
        if optimizer is not None:
            notices.append(f"the optimizer's state is a {type(optimizer).__name__}, not a dict; it was left out")
        optimizer = {}
    groups = optimizer.get("param_groups")
    groups = [group for group in groups if isinstance(group, dict)] if isinstance(groups, (list, tuple)) else []
    facts: dict[str, Any] = {}
    for fact, key in (("learning_rate", "lr"), ("momentum", "momentum"), ("weight_decay", "weight_decay")):
        if groups and (value := _number(groups[0].get(key), f"optimizer.{key}", source)) is not None:
            facts[fact] = value
    if (best := _number(training.get("best_prec1"), "best_prec1", source)) is not None:
        # Six digits of a float32 percentage.
        facts["best_top1"] = round(best / 100, 6)
    if (best := _number(training.get("best_acc"), "best_acc", source)) is not None:
        facts["best_acc"] = best
    epochs = _epochs(training.get("epoch"), source)
    if epochs is None:
        notices.append("the training dict does not say how many epochs were done; 0 were assumed")
    momentum, more = _momentum(optimizer, groups, table, shapes, source)
    return TrainingState(epochs or 0, momentum, facts), notices + more


def _epochs(epoch: Any, source: str) -> int | None:
    """Completed epochs; the reference stores the number of the last one, counted from 0. None without a number."""
    number = _number(epoch, "epoch", source)
    if number is None:
        return None
    if number != int(number) or not -1 <= number < 10**9:
        raise CheckpointError(f"The entry 'epoch' of {source} is {shown(number)}; the number of an epoch is needed.")
    return int(number) + 1


def _number(value: Any, key: str, source: str) -> float | int | None:
    """A number, also one in a tensor of one element; None for what is no number.

    Raises:
        CheckpointError: NaN or infinite.
    """
    if hasattr(value, "detach"):
        array = to_array(value, key, source)
        value = array.item() if array.size == 1 else None
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value):
        raise CheckpointError(f"The entry {key!r} of {source} is {value}; a finite number is needed.")
    return value


def _momentum(
    optimizer: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    table: Sequence[Entry],
    shapes: Mapping[str, Any],
    source: str,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Momentum buffers by path, and notices. PyTorch numbers parameters in the order of ``model.parameters()``."""
    state = optimizer.get("state")
    if not isinstance(state, dict) or not state:
        return {}, ["the optimizer holds no momentum; training starts with none"]
    orders = [
        list(group["params"]) for group in groups if isinstance(group.get("params"), (list, tuple)) and group["params"]
    ]
    if len(orders) > 1:
        raise CheckpointError(
            f"The optimizer of {source} has {len(orders)} groups of parameters. Their order among each other is that of "
            "the groups and not of the network, so its momentum cannot be assigned. Save the state dict alone to convert "
            "the weights: torch.save(checkpoint['model'], 'weights.pth')."
        )
    order = orders[0] if orders else []
    parameters = [entry for entry in table if entry.trained]
    buffers = {number: values.get("momentum_buffer") for number, values in state.items() if isinstance(values, dict)}
    if len(order) != len(parameters) or all(value is None for value in buffers.values()):
        return {}, [
            f"the optimizer's state is not that of SGD with momentum over the {len(parameters)} parameters; it was left out"
        ]
    momentum = {entry.path: np.zeros(shapes[entry.path].shape, shapes[entry.path].dtype) for entry in parameters}
    without = []
    for entry, number in zip(parameters, order, strict=True):
        buffer = buffers.get(number)
        if buffer is None:
            # A parameter that never had a gradient, such as those of an unused last_bn, has no buffer.
            without.append(entry.key)
            continue
        name = f"momentum of {entry.key}"
        array = to_array(buffer, name, source)
        if array.shape != entry.shape:
            raise CheckpointError(
                f"The momentum of {entry.key!r} is of shape {shown(list(array.shape))} and its parameter of "
                f"{list(entry.shape)}: the optimizer in {source} belongs to another network."
            )
        entry.write(momentum[entry.path], checked(array, shapes[entry.path].dtype, name, source))
    if without:
        return momentum, [f"{len(without)} parameters have no momentum in the file and start with none: {listed(without)}"]
    return momentum, []
