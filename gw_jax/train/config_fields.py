"""The fields of configuration dataclasses by name: as a flat dict, as the command line names them, and their types."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from gw_jax.errors import ConfigError, unknown_field


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """All fields as ``{"optimizer.momentum": 0.9, ...}``, tuples as lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{field.name}."))
        else:
            flat[prefix + field.name] = list(value) if isinstance(value, tuple) else value
    return flat


def set_field(config: Any, path: str, value: Any) -> None:
    """Sets the field ``path``, such as "optimizer.momentum", to a value as :func:`flatten` returns it."""
    *groups, name = path.split(".")
    for group in groups:
        config = getattr(config, group)
    setattr(config, name, tuple(value) if isinstance(value, list) else value)


def is_optional(config: Any, path: str) -> bool:
    """Whether the field ``path`` may be None."""
    return types.NoneType in _alternatives(field_type(config, path))


def field_type(config: Any, path: str) -> Any:
    """The type with which the field ``path`` is declared."""
    *groups, name = path.split(".")
    for group in groups:
        config = getattr(config, group)
    return typing.get_type_hints(type(config))[name]


def check_field_name(config: Any, path: str) -> None:
    """Checks that ``path``, such as "optimizer.momentum", names a field of ``config`` that the command line can set.

    Raises:
        ConfigError: there is no such field; the message lists those that exist.
    """
    root = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        names = [field.name for field in dataclasses.fields(config)]
        if part not in names:
            group = ".".join(["config", *parts[:depth]])
            elsewhere = [name for name in flatten(root) if name.rsplit(".", 1)[-1] == part]
            hint = f" There is --config.{elsewhere[0]}." if elsewhere else ""
            raise ConfigError(unknown_field(group, part, names) + hint)
        config = getattr(config, part)
        last = depth == len(parts) - 1
        if last and dataclasses.is_dataclass(config):
            inner = ", ".join(f"--config.{path}.{field.name}" for field in dataclasses.fields(config))
            raise ConfigError(f"config.{path} is a group of fields; set one of {inner}.")
        if not last and not dataclasses.is_dataclass(config):
            raise ConfigError(f"config.{'.'.join(parts[: depth + 1])} is a value and has no field {parts[depth + 1]!r}.")


def check_types(config: Any, where: str) -> None:
    """Raises ConfigError unless every field of ``config``, at any depth, holds a value of its type; ``where`` names it."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, expected, name = getattr(config, field.name), hints[field.name], f"{where}.{field.name}"
        if dataclasses.is_dataclass(expected):
            if not isinstance(value, typing.cast(type, expected)):
                raise ConfigError(f"{name} is a {type(value).__name__}; it must be a {_type_name(expected)}.")
            check_types(value, name)
        elif not any(_is_a(value, allowed) for allowed in _alternatives(expected)):
            raise ConfigError(f"{name}={value!r} is a {type(value).__name__}; it must be of type {_type_name(expected)}.")


def _alternatives(expected: Any) -> Iterator[Any]:
    if isinstance(expected, types.UnionType):
        yield from typing.get_args(expected)
    else:
        yield expected


def _is_a(value: Any, expected: Any) -> bool:
    if typing.get_origin(expected) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, typing.get_args(expected)[0]) for item in value)
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _type_name(expected: Any) -> str:
    return getattr(expected, "__name__", None) if isinstance(expected, type) else str(expected)  # type: ignore[return-value]
