"""The report of the doctor: sections of lines, and the list of what is wrong."""

import dataclasses
import json
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

WIDTH = 120


@dataclasses.dataclass
class Section:
    """One part of the report.

    Attributes:
        title: its heading.
        lines: what was found, as (label, text).
        notes: sentences for the reader that are no faults.
        problems: what is wrong, and what to do about it.
        data: the same for programs.
        seconds: how long it took.
    """

    title: str
    lines: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def add(self, label: str, text: object) -> None:
        """Adds a line."""
        self.lines.append((label, str(text)))


class Report:
    """Runs the sections one by one, prints each, and keeps the problems."""

    def __init__(self, *, as_json: bool = False, plain: bool = False):
        self.sections: list[Section] = []
        self._as_json = as_json
        self._bold = not plain and not as_json and sys.stdout.isatty()

    @property
    def problems(self) -> list[str]:
        """What is wrong, in the order in which it was found."""
        return [problem for section in self.sections for problem in section.problems]

    def run(self, title: str, fill: Callable[[Section], None]) -> Section:
        """Runs ``fill`` on a new section. An exception is a problem of the section: the doctor does not end by it."""
        section = Section(title)
        began = time.perf_counter()
        try:
            fill(section)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, too, which a broken package may raise.
            section.problems.append(f"{title} could not be checked: {type(error).__name__}: {_first_lines(error)}")
        section.seconds = time.perf_counter() - began
        self.sections.append(section)
        if not self._as_json:
            self._print(section)
        return section

    def finish(self) -> int:
        """Prints the result. Returns the exit code: 0, or 1 where anything is wrong."""
        problems = self.problems
        if self._as_json:
            found = [dataclasses.asdict(section) | {"lines": dict(section.lines)} for section in self.sections]
            print(json.dumps({"passed": not problems, "problems": problems, "sections": found}))
        elif problems:
            print(self._heading(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"))
            for number, problem in enumerate(problems, 1):
                print(textwrap.fill(problem, WIDTH, initial_indent=f"{number:3d}. ", subsequent_indent=" " * 5))
        else:
            print(f"All checks passed. ({sum(section.seconds for section in self.sections):.0f} s)")
        return 1 if problems else 0

    def _print(self, section: Section) -> None:
        print(self._heading(section.title))
        width = max((len(label) for label, _ in section.lines), default=0)
        for label, text in section.lines:
            first = f"  {label:{width}}  "
            print(textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first)))
        for note in section.notes:
            print(textwrap.fill(f"note: {note}", WIDTH, initial_indent="  ", subsequent_indent="  "))
        for problem in section.problems:
            print(textwrap.fill(f"WRONG: {problem}", WIDTH, initial_indent="  ", subsequent_indent="  "))
        print(flush=True)

    def _heading(self, title: str) -> str:
        return f"\033[1m{title}\033[0m" if self._bold else title


def _first_lines(error: BaseException, length: int = 600) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if len(text) <= length else text[:length] + "..."
