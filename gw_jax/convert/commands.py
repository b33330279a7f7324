"""What the command lines of the converters share."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gw_jax.errors import ConfigError, UserError, one_line, shown
from gw_jax.files import require_new

Convert = Callable[[argparse.Namespace], list[str]]


def parse_dict(text: str) -> dict[str, Any]:
    """The reference's ``key=value,key=value``: numbers, ``True``, ``False``, ``None``, else strings.

    Raises:
        ConfigError: an item is not ``key=value``.
    """
    result: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or "=" in value or not key:
            raise ConfigError(f"{shown(item)} in {shown(text)} is not key=value; write T=5,num_groups=64.")
        result[key.strip()] = _parse_value(value.strip())
    return result


def _parse_value(text: str) -> Any:
    words: dict[str, Any] = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def refuse_options(args: argparse.Namespace, options: Sequence[str], why: str) -> None:
    """Raises ConfigError for an option that would have no effect."""
    for name in options:
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} {why}. Leave it out.")


def convert(
    args: argparse.Namespace, *, read: Convert, write: Convert, reading: Sequence[str], writing: Sequence[str]
) -> int:
    """Converts ``args.source`` to ``args.target``, which must not exist; prints what was done, or the error.

    Args:
        args: the command line.
        read: converts a file to a directory, and returns the lines to print.
        write: converts a directory to a file, likewise.
        reading: options for the former only.
        writing: options for the latter only.

    Returns:
        The exit code.
    """
    try:
        require_new(args.target)
        if os.path.isdir(args.source):  # Unlike Path.is_dir, false for a name that is too long.
            refuse_options(args, reading, "is for reading a .pth file, and the source is a directory")
            lines = write(args)
        else:
            refuse_options(args, writing, "is for writing a .pth file, and the source is not a directory")
            lines = read(args)
    except (UserError, OSError) as error:
        print(f"error: {one_line(str(error), 2000)}", file=sys.stderr)
        return 1
    for line in lines:
        print(one_line(line))
    return 0
