"""The text of ``--help``: every field has one, from the docstring that declares it."""

import dataclasses
import pathlib

import pytest

from gw_jax.classification import ClassificationConfig
from gw_jax.config_checks import choice, number
from gw_jax.train import command_line
from gw_jax.train.config_fields import flatten
from gw_jax.train.config_help import field_lines, field_texts

DEFAULT = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"


@dataclasses.dataclass(slots=True, kw_only=True)
class Inner:
    """The ``inner`` group; see :func:`gw_jax.group_whiten`.

    Attributes:
        kind: what it is, over
            two lines.
    """

    kind: str | None = choice(None, ("a", "b"))


@dataclasses.dataclass(slots=True, kw_only=True)
class Base:
    """A base.

    Attributes:
        size: of the base.
    """

    size: int = number(3, 1, 10)


@dataclasses.dataclass(slots=True, kw_only=True)
class Config(Base):
    """A configuration.

    Attributes:
        inner: the group.
        flag: as ``flag`` says: yes or no.
        rate: a rate.

    Note: not an attribute.
    """

    inner: Inner = dataclasses.field(default_factory=Inner)
    flag: bool = False
    rate: float | None = number(None, 0)
    names: tuple[str, ...] = ()


def test_lines_have_value_text_and_choices():
    assert field_lines(Config(size=5), Config()) == [
        "  --config.size=5   (default 3)",
        "        of the base. [1 to 10]",
        "  --config.flag=False",
        "        as flag says: yes or no. [True, False]",
        "  --config.rate=None",
        "        a rate. [>= 0, or None]",
        "  --config.names=()",
        "",
        "  inner: The inner group; see gw_jax.group_whiten.",
        "  --config.inner.kind=None",
        "        what it is, over two lines. [a, b, or None]",
    ]


def dataclasses_of(kind):
    yield kind
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(field.default_factory):
            yield from dataclasses_of(field.default_factory)


@pytest.mark.parametrize("kind", list(dataclasses_of(ClassificationConfig)), ids=lambda kind: kind.__name__)
def test_every_field_of_classification_is_explained(kind):
    groups = {field.name for field in dataclasses.fields(kind) if dataclasses.is_dataclass(field.default_factory)}
    assert {field.name for field in dataclasses.fields(kind)} - groups <= set(field_texts(kind))


def test_help_shows_the_values_of_the_config_file():
    lines = command_line.help_text(["train.py"], DEFAULT).splitlines()
    fields = [line.split("=")[0].strip().removeprefix("--config.") for line in lines if line.startswith("  --config.")]
    assert sorted(fields) == sorted(flatten(ClassificationConfig()))
    assert "  --config.model.norm_options.num_groups=8   (default None)" in lines
    norms = lines[lines.index("  --config.model.norm=gw") + 1]
    assert "the norm that whiten places. [" in norms
    assert "iternorm" in norms
    assert not [line for line in lines if "``" in line or ":func:" in line][1:]
