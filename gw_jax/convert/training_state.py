"""What a training dict says of the run: epochs, momentum, learning rate."""

import dataclasses
from typing import Any

import numpy as np

from gw_jax.convert.layout import Entry, trained_keys
from gw_jax.convert.torch_file import tensors_to_arrays
from gw_jax.errors import CheckpointError


@dataclasses.dataclass
class TrainingState:
    """What a training dict holds beside the network.

    Attributes:
        epochs: completed epochs.
        momentum: SGD's momentum buffers by path of the parameter; empty if the optimiser had taken no step.
        facts: learning rate, best top-1 and the like, as far as the dict has them; for people, and for ``config.json``.
    """

    epochs: int
    momentum: dict[str, np.ndarray]
    facts: dict[str, Any]


def training_state(
    training: dict[str, Any], table: list[Entry], shapes: dict[str, Any], notices: list[str]
) -> TrainingState:
    """The state of the run that wrote ``training``, a training dict; what is left out of it is added to ``notices``.

    Raises:
        CheckpointError: the momentum belongs to another network.
    """
    optimizer = tensors_to_arrays(training.get("optimizer") or {})
    epoch = training.get("epoch")
    facts: dict[str, Any] = {}
    groups = optimizer.get("param_groups") or [{}]
    for ours, theirs in (("learning_rate", "lr"), ("momentum", "momentum"), ("weight_decay", "weight_decay")):
        if isinstance(groups[0].get(theirs), (int, float)):
            facts[ours] = groups[0][theirs]
    if "best_prec1" in training:
        # Six digits of a float32 percentage.
        facts["best_top1"] = round(float(tensors_to_arrays(training["best_prec1"])) / 100, 6)
    if "best_acc" in training:
        facts["best_acc"] = float(tensors_to_arrays(training["best_acc"]))
    momentum = _momentum(optimizer, groups, table, shapes, notices)
    return TrainingState(epochs=(epoch if isinstance(epoch, int) else -1) + 1, momentum=momentum, facts=facts)


def _momentum(
    optimizer: dict[str, Any],
    groups: list[dict[str, Any]],
    table: list[Entry],
    shapes: dict[str, Any],
    notices: list[str],
) -> dict[str, np.ndarray]:
    """Momentum buffers by path. PyTorch numbers parameters in the order of ``model.parameters()``, or names them by id."""
    state = optimizer.get("state") or {}
    if not state:
        notices.append("the optimizer holds no momentum; training starts with none")
        return {}
    order = [number for group in groups for number in group.get("params", [])]
    parameters = trained_keys(table)
    buffers = {number: values.get("momentum_buffer") for number, values in state.items()}
    if len(order) != len(parameters) or not any(isinstance(value, np.ndarray) for value in buffers.values()):
        notices.append(
            f"the optimizer's state is not that of SGD with momentum over the {len(parameters)} parameters; it was left out"
        )
        return {}
    momentum = {entry.path: np.zeros(shapes[entry.path].shape, shapes[entry.path].dtype) for entry in parameters}
    for entry, number in zip(parameters, order, strict=True):
        buffer = buffers.get(number)
        # Parameters that never had a gradient, such as those of an unused last_bn, have no buffer.
        if isinstance(buffer, np.ndarray):
            if buffer.shape != entry.shape:
                raise CheckpointError(
                    f"The momentum of {entry.key!r} is of shape {list(buffer.shape)} and its parameter of "
                    f"{list(entry.shape)}: the optimizer in the file belongs to another network."
                )
            entry.put(momentum[entry.path], buffer)
    return momentum
