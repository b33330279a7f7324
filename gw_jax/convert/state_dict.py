"""The state dict in a file's content, and the prefixes that wrappers of PyTorch put before its keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gw_jax.convert.fill import listed
from gw_jax.errors import CheckpointError, shown

# Where training dicts keep a state dict: the reference's name first. Then those of averaged weights.
WEIGHTS = ("model", "state_dict", "model_state_dict", "net")
EMA_WEIGHTS = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")

# What DataParallel, torch.compile, and classes that hold the network as an attribute put before its keys.
PREFIXES = ("module.", "_orig_mod.", "model.")
# Momentum contrast holds two networks and a queue; the first is the trained one.
MOCO_PREFIX = "encoder_q."
MOCO_REST = ("encoder_k.", "queue")

# What averaged weights count beside their entries.
EMA_COUNTER = "n_averaged"

# The keys of networks have some 40 characters.
MAX_KEY_LENGTH = 200


@dataclasses.dataclass(frozen=True)
class StateDict:
    """A state dict as it was found in a file.

    Attributes:
        state: names, without prefixes, and values.
        name: where it was in a training dict; None for a bare state dict.
        ignored: names of entries that were left out.
        notices: remarks on how it was found.
    """

    state: dict[str, Any]
    name: str | None = None
    ignored: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def find_state_dict(source: str, content: Any, *, ema: bool) -> StateDict:
    """The state dict in the content of a file.

    Args:
        source: the file, for messages.
        content: what was in it: plain dicts, lists, tensors.
        ema: whether the averaged weights are requested.

    Raises:
        CheckpointError: there is none, or not the requested one.
    """
    if not isinstance(content, dict):
        raise _no_state_dict(source, f"a {type(content).__name__}")
    averaged = [name for name in EMA_WEIGHTS if _has_tensors(content.get(name))]
    names = [name for name in WEIGHTS if isinstance(content.get(name), dict)]
    # Options of the network can be in a dict under "model", beside its weights under another name.
    names = [name for name in names if _has_tensors(content[name])] or names
    notices = []
    if names or averaged:
        chosen = averaged if ema else names
        if not chosen and ema:
            raise CheckpointError(
                f"{source} has no averaged weights (EMA), only {listed(names)}. Leave out --ema (ema=True)."
            )
        if not chosen:
            raise CheckpointError(
                f"{source} has only averaged weights (EMA), under {listed(averaged)}. Pass --ema (ema=True) to read them."
            )
        name = chosen[0]
        if averaged:
            weights = "the averaged weights (EMA)" if ema else "the weights of the last step, not the averaged ones (EMA)"
            how = "leave out --ema (ema=True)" if ema else "pass --ema (ema=True)"
            other = f"; for the others under {listed(names if ema else averaged)}, {how}" if names else ""
            notices.append(f"{weights} were read, under {name!r}{other}")
        if len(chosen) > 1:
            notices.append(f"{name!r} was read, and {listed(chosen[1:])} was not")
        found = content[name]
    elif content and all(hasattr(value, "detach") for value in content.values()):
        if ema:
            raise CheckpointError(
                f"{source} is a bare state dict, without averaged weights (EMA). Leave out --ema (ema=True)."
            )
        name, found = None, content
    else:
        keys = ", ".join(shown(key)[1:-1] if isinstance(key, str) else shown(key) for key in list(content)[:8])
        raise _no_state_dict(source, f"a dict with the keys {keys or 'none'}")
    _check_keys(source, found)
    stripped = strip_prefixes(found)
    return dataclasses.replace(stripped, name=name, notices=(*notices, *stripped.notices))


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(hasattr(item, "detach") for item in value.values())


def _no_state_dict(source: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{source} is no checkpoint of a network: it holds {what}. A state dict (names and tensors) is needed, or a "
        f"training dict with one under one of {', '.join((*WEIGHTS, *EMA_WEIGHTS))}."
    )


def _check_keys(source: str, state: Mapping[Any, Any]) -> None:
    for key in state:
        if not isinstance(key, str):
            raise CheckpointError(
                f"{source} is no checkpoint of a network: the key {shown(key)} of its state dict is a "
                f"{type(key).__name__}; names of entries are needed."
            )
        if len(key) > MAX_KEY_LENGTH:
            raise CheckpointError(f"{source} has an entry with a name of {len(key)} characters: {shown(key)}.")


def strip_prefixes(state: Mapping[str, Any]) -> StateDict:
    """``state`` without the prefixes that all of its keys have in common."""
    ignored = [key for key in state if key == EMA_COUNTER]
    result = {key: value for key, value in state.items() if key not in ignored}
    removed, is_moco = "", False
    while result:
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in result)), None)
        if prefix is not None:
            result = {key.removeprefix(prefix): value for key, value in result.items()}
            removed += prefix
        elif all(key.startswith((MOCO_PREFIX, *MOCO_REST)) for key in result) and any(
            key.startswith(MOCO_PREFIX) for key in result
        ):
            ignored += [key for key in result if not key.startswith(MOCO_PREFIX)]
            result = {key.removeprefix(MOCO_PREFIX): v for key, v in result.items() if key.startswith(MOCO_PREFIX)}
            removed, is_moco = removed + MOCO_PREFIX, True
        else:
            break
    notices: tuple[str, ...] = ()
    if is_moco:
        notices = (f"the entries below {removed!r} were read; those of encoder_k and queue were not",)
    elif removed:
        notices = (f"every key had the prefix {removed!r}, which was removed",)
    return StateDict(result, ignored=tuple(ignored), notices=notices)
