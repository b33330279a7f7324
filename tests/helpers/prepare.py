"""The commands that prepare data sets, and how they refuse."""

import pytest

from gw_jax.data.prepare.__main__ import main


def refused(*arguments, command=main):
    """Runs a command in this process and gives its error without "error: "; it is one line, with exit code 1."""
    with pytest.raises(SystemExit) as caught:
        command([str(argument) for argument in arguments])
    # Python prints a text on standard error and exits with 1.
    message = caught.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message.removeprefix("error: ")
