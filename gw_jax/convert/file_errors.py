"""The border between files and the converter: whatever a file causes becomes an error of the project."""

import contextlib
from collections.abc import Iterator

from gw_jax.errors import CheckpointError, UserError, one_line, shown

# Longest message about a file; names in it are shortened on their own.
MESSAGE_LENGTH = 2000


@contextlib.contextmanager
def file_errors(source: str, entry: object = None) -> Iterator[None]:
    """Turns every exception into a :class:`CheckpointError` that names ``source`` and the entry; one printable line.

    The project's own errors pass, also made one printable line. Everything that works on the content of a file runs
    inside: a hostile file can make any line of it fail, in ways that cannot be listed.

    Args:
        source: the file.
        entry: the name of the entry that is worked on, if it is known.
    """
    try:
        yield
    except UserError as error:
        error.args = (one_line(str(error), MESSAGE_LENGTH),)
        raise
    except OSError as error:
        raise CheckpointError(
            f"{one_line(source, 300)} cannot be read: {one_line(error.strerror or str(error), 200)}."
        ) from error
    except Exception as error:
        where = one_line(source, 300) if entry is None else f"The entry {shown(entry)} of {one_line(source, 300)}"
        reason = one_line(str(error).strip(), 200)
        raise CheckpointError(
            f"{where} cannot be converted: it is damaged or not what it seems "
            f"({type(error).__name__}{': ' if reason else ''}{reason})."
        ) from error
