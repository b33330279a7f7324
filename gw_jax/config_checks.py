"""Allowed values of configuration fields: declared beside the field, checked in one place."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from gw_jax.errors import ConfigError, unknown_name


def choice(default: str | None, allowed: Iterable[str]) -> Any:
    """A string field of a configuration dataclass with the values ``allowed``.

    The annotation is ``str``: the flag parser does not support ``typing.Literal``.
    """
    return dataclasses.field(default=default, metadata={"choices": tuple(allowed)})


def number(default: float | None, low: float | None = None, high: float | None = None) -> Any:
    """A numeric field of a configuration dataclass with ``low <= value <= high``."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def check_values(config: Any, where: str = "config") -> None:
    """Checks every field of ``config``, at any depth, against its declaration by :func:`choice` or :func:`number`.

    None is allowed where the type allows it. Every number must be finite, those of tuples, too.

    Raises:
        ConfigError: the first value that is not allowed: its field, the value, what is allowed.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            check_values(value, name)
        elif "choices" in field.metadata and value is not None and value not in field.metadata["choices"]:
            raise ConfigError(unknown_name(name, value, field.metadata["choices"]))
        for entry in value if isinstance(value, tuple) else (value,):
            if isinstance(entry, int | float) and not isinstance(entry, bool):
                _check_number(name, entry, field.metadata.get("low"), field.metadata.get("high"))


def _check_number(name: str, value: float, low: float | None, high: float | None) -> None:
    if math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high):
        return
    if low is None and high is None:
        raise ConfigError(f"{name}={value} must be a finite number.")
    bounds = f"<= {high:g}" if low is None else f">= {low:g}" if high is None else f"{low:g} to {high:g}"
    raise ConfigError(f"{name}={value} is out of range; {bounds} is allowed.")


def check_split(name: str, size: int, num_devices: int, parts: int = 1) -> None:
    """Checks that a batch can be sharded over devices.

    Args:
        name: of its field, such as "config.batch_size".
        size: examples of the batch.
        num_devices: number of devices.
        parts: microbatches into which it is cut first.

    Raises:
        ConfigError: it does not divide; the message says which sizes near it do.
    """
    unit = num_devices * parts
    if size % unit:
        near = sorted({max(size // unit, 1) * unit, (size // unit + 1) * unit})
        times = f" in {parts} parts (config.accumulate_steps)" if parts > 1 else ""
        raise ConfigError(
            f"{name}={size} cannot be split evenly over {num_devices} devices{times}; choose a multiple of {unit}, such as "
            f"{' or '.join(map(str, near))}."
        )
