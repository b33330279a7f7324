"""A hook of mkdocs: links of the pages to files of the repository outside ``docs/`` lead to copies of them in the site.

So the same relative link works on a code host and in the site, whatever the address of the repository is.
"""

import pathlib
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[2]
_LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrites the links of one page, and adds the files that they name to the site."""
    # A page that is a link, such as the changelog, has the links of the file that it leads to.
    source = pathlib.Path(page.file.abs_src_path).resolve().parent

    def rewrite(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = (source / target).resolve()
        docs = ROOT / "docs"
        if path.is_relative_to(docs):
            uri = path.relative_to(docs).as_posix()
        elif path.is_relative_to(ROOT) and path.is_file():
            uri = "repository/" + path.relative_to(ROOT).as_posix()
            # As text: a browser shows it, and a Markdown file is no page.
            uri += ".txt" if path.suffix == ".md" else ""
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
        else:
            return match[0]
        return f"]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))}{anchor})"

    return _LINK.sub(rewrite, markdown)
