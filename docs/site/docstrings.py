"""An extension of griffe, which reads docstrings for the API pages: what is no Markdown becomes Markdown.

``Example:`` becomes the section that griffe calls ``Examples:``; roles such as ``:func:`name``` become code, and the
double colon before an indented block a single one.
"""

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_LITERAL = re.compile(r"::(?=\n\n? +)")
_ROLE = re.compile(r":(?:\w+):`~?([^`]+)`")


class ToMarkdown(Extension):
    """Rewrites every docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each object with its docstring."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub("Examples:", _ROLE.sub(r"`\1`", obj.docstring.value))
            obj.docstring.value = _LITERAL.sub(":", text)
