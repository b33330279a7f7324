"""The fields of a configuration for ``--help``: value, allowed values, and the text of the docstring that declares them."""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

_WIDTH = 110
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_ENTRY = re.compile(r"(?m)^(\w+): ")


def field_lines(config: Any, default: Any) -> list[str]:
    """Two or more lines for each field of ``config``: the flag with its value, then what it means.

    Args:
        config: the configuration of the config file.
        default: one of the same type with the default of every field, which is shown where it differs.
    """
    return [line for lines in _groups(config, default, "") for line in lines]


def field_texts(kind: type) -> dict[str, str]:
    """The text of each field of a configuration dataclass, from the ``Attributes`` sections of it and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(r"\nAttributes:\n(.*?)(?:\n\n|\Z)", inspect.cleandoc(base.__doc__ or ""), re.DOTALL)
        if section is None or not dataclasses.is_dataclass(base):
            continue
        _, *parts = _ENTRY.split(textwrap.dedent(section[1]))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            texts[name] = _plain(" ".join(text.split()))
    return texts


def _groups(config: Any, default: Any, prefix: str) -> Iterator[list[str]]:
    kind = type(config)
    texts, hints = field_texts(kind), typing.get_type_hints(kind)
    # Groups last: a field after one would seem to belong to it.
    for field in sorted(dataclasses.fields(config), key=lambda field: dataclasses.is_dataclass(hints[field.name])):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        path, text = f"{prefix}{field.name}", texts.get(field.name, "")
        if dataclasses.is_dataclass(value):
            yield ["", f"  {path}: {_first_line(type(value))}"]
            yield from _groups(value, usual, f"{path}.")
            continue
        shown = f"  --config.{path}={value}" + (f"   (default {usual})" if value != usual else "")
        allowed = _allowed(field.metadata, hints[field.name])
        body = f"{text} {allowed}".strip()
        yield [shown, *textwrap.wrap(body, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)]


def _allowed(metadata: Any, hint: Any) -> str:
    """The values that a field accepts, in brackets."""
    unset = ", or None" if type(None) in typing.get_args(hint) else ""
    if "choices" in metadata:
        return f"[{', '.join(metadata['choices'])}{unset}]"
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None or high is not None:
        bounds = f"<= {high:.10g}" if low is None else f">= {low:.10g}" if high is None else f"{low:.10g} to {high:.10g}"
        return f"[{bounds}{unset}]"
    if hint in (bool, bool | None):
        return f"[True, False{unset}]"
    return f"[{unset.removeprefix(', or ')}]".replace("[]", "").replace("[None]", "[None unsets it]")


def _first_line(kind: type) -> str:
    return _plain((kind.__doc__ or kind.__name__).strip().splitlines()[0])


def _plain(text: str) -> str:
    return _ROLE.sub(r"\1", text).replace("``", "")
