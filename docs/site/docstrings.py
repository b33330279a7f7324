"""An extension of griffe, which reads docstrings for the API pages: what is no Markdown becomes Markdown.

Roles such as ``:func:`name``` become code, and the double colon before an indented block a single one.
"""

import re
from typing import Any

from griffe import Extension, Object

_LITERAL = re.compile(r"::(?=\n\n? +)")
_ROLE = re.compile(r":(?:\w+):`~?([^`]+)`")


class ToMarkdown(Extension):
    """Rewrites every docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each object with its docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _LITERAL.sub(":", _ROLE.sub(r"`\1`", obj.docstring.value))
