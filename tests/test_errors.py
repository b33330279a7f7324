import numpy as np
import pytest

from gw_jax.errors import one_line, shown, unknown_name


def test_unknown_name():
    assert (
        unknown_name("config.model.norm", "gww", ["gw", "gn", "gw"])
        == "config.model.norm='gww' is not known; choose one of gw, gn. Did you mean 'gw'?"
    )
    assert unknown_name("arch", 7, iter("ab")) == "arch=7 is not known; choose one of a, b."


@pytest.mark.parametrize("value", ["\x1b[2Jgw\n", "x" * 10**7, ["\x1b" * 500] * 3, np.eye(3)])
def test_values_are_escaped_and_shortened(value):
    message = unknown_name("norm", value, ["gw"])
    assert message.isprintable()
    assert message.isascii()
    assert len(message) < 200
    assert len(shown(value)) <= 120


def test_values_that_cannot_be_printed():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    nested = []
    for _ in range(10**5):
        nested = [nested]
    assert shown(Broken()) == "<Broken>"
    assert shown(nested) == "<list>"


def test_one_line():
    assert one_line("a\nb\x1b[0m\u2028é") == "a\\nb\\x1b[0m\\u2028é"
    assert len(one_line("\n" * 10**6)) == 600
