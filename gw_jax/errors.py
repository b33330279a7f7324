"""Errors whose message is all a user needs: what was given, what is allowed, what to do.

``train.py`` and the command lines print them without a traceback and exit with a code other than 0.
"""

import difflib
from collections.abc import Iterable
from typing import NoReturn

# Longest text of a user's or a file's value in a message; a longer one is cut in the middle.
SHOWN_LENGTH = 120


class UserError(Exception):
    """The base of all errors that a user can fix."""


class ConfigError(UserError):
    """A configuration that is not valid, or that does not fit the work directory or the devices."""


class DataError(UserError):
    """A data set that is missing, not prepared, damaged, or not of the kind that the task needs."""


class CheckpointError(UserError):
    """A checkpoint that is missing or cannot be read."""


class TrainingError(UserError):
    """A run that cannot continue, such as one whose loss is not finite."""


def shown(value: object, length: int = SHOWN_LENGTH) -> str:
    """``value`` as printable ASCII on one line, at most ``length`` characters.

    A string is quoted; control characters, which a terminal would obey, are escaped. For what files and command lines hold.
    """
    if isinstance(value, str):
        # Escaping all of a string of megabytes only to cut it takes time and memory.
        return _shortened(ascii(_shortened(value, length)), length)
    try:
        # An array of several rows has several lines.
        text = " ".join(line.strip() for line in ascii(value).splitlines())
    except Exception:  # A repr of the object's own, or an object nested too deeply.
        text = f"<{type(value).__name__}>"
    return _shortened(text, length)


def one_line(text: str, length: int = 600) -> str:
    """``text`` without control characters, on one line of at most ``length`` characters."""
    text = _shortened(text, length)
    return _shortened("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), length)


def _shortened(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}...{text[-(length - length // 2 - 3) :]}"


def unknown_name(what: str, value: object, known: Iterable[str], *, choices: str | None = None) -> str:
    """One sentence for a name that does not exist, with the names that do and the closest of them.

    Args:
        what: what the name is for, such as "config.model.norm" or "arch".
        value: the name that was given; it is shown escaped and shortened.
        known: the names that exist, in the order in which they are listed.
        choices: what to choose, where the names are too many to list.

    Returns:
        Such as ``config.model.norm='gww' is not known; choose one of gw, gn. Did you mean 'gw'?``
    """
    return f"{what}={shown(value)} is not known; {_choose(value, known, choices)}"


def unknown_field(owner: str, name: str, known: Iterable[str]) -> str:
    """The same sentence for a field that ``owner``, such as "config.optimizer", does not have."""
    return f"{owner} has no field {shown(name)}; {_choose(name, known, None)}"


def _choose(value: object, known: Iterable[str], choices: str | None) -> str:
    names = list(dict.fromkeys(known))
    # The comparison takes time quadratic in the length of the name.
    close = difflib.get_close_matches(str(value), names, n=1) if len(str(value)) <= SHOWN_LENGTH else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"choose {choices or 'one of ' + ', '.join(names)}.{hint}"


def raise_missing_package(error: ImportError, purpose: str, extra: str = "examples") -> NoReturn:
    """Raises a :class:`ConfigError` that names the ``extra`` to install for ``purpose``."""
    raise ConfigError(
        f"{purpose} needs the package {error.name!r}, which is not installed. "
        f"Install the extra: pip install 'gw_jax[{extra}]' (or, in a checkout, pip install -e '.[{extra}]')."
    ) from error
