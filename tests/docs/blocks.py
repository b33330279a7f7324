"""The code blocks of the pages, with the marks that stand before them in comments that readers do not see.

<!-- not run: needs a TPU slice -->        the block is only parsed; the reason must say what is missing
<!-- run with: --config.num_epochs=1 -->   arguments that the test adds to each ``python train.py`` of a shell block
<!-- after the commands -->                a Python block that needs what the shell blocks above it made
<!-- slow -->                              a Python block that only the slow tests run
<!-- file: fit.py -->                      a Python block that the reader saves under this name; it also runs
<!-- as in: README.md -->                  a block that stands in the README, too, and runs there
"""

import dataclasses
import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("bash", "sh")
# Blocks that are read, not run.
TEXTS = ("text", "json", "bibtex", "diff")

_FENCE = re.compile(r"(?P<indent> *)```(?P<language>.*)")
_MARK = re.compile(r" *<!-- (?P<kind>not run|run with|after the commands|slow|file|as in)(?:: (?P<text>.+))? -->")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language and text, and the marks before it by their kind."""

    page: pathlib.Path
    line: int
    language: str
    text: str
    marks: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: pathlib.Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    blocks, marks, lines = [], {}, page.read_text().splitlines()
    position = 0
    while position < len(lines):
        if mark := _MARK.fullmatch(lines[position]):
            marks[mark["kind"]] = mark["text"] or ""
        elif fence := _FENCE.fullmatch(lines[position]):
            start = position + 1
            position = lines.index(fence["indent"] + "```", start)
            text = textwrap.dedent("\n".join(lines[start:position])) + "\n"
            blocks.append(Block(page, start + 1, fence["language"], text, marks))
            marks = {}
        elif lines[position].strip():
            assert not marks, f"{page}:{position + 1}: a mark before something that is no block"
        position += 1
    return blocks


def identify(page: pathlib.Path) -> str:
    """The name of a page in the names of tests."""
    return str(page.relative_to(ROOT))
