"""Links between files of the repository, as links between pages of the site.

A page links as GitHub follows it, from its own place in the repository: to other pages, to examples, to sources. Where
the file is a page of the site, the link goes there; any other file of the repository becomes a page of its source.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Files whose page has another place on the site than they have in docs/.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tests/benchmarks/RESULTS.md": "benchmarks.md",
    "examples": "examples/index.md",
}
HOMES = {page: file for file, page in MOVED.items()}

CODE = re.compile(r"^( *)(`{3,}|~{3,})[^\n]*\n.*?^\1\2[`~]* *$|(?P<inline>`[^`\n]+`)", re.M | re.S)
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=[)\s])|(?<=src=\")([^\"]+)(?=\")")


def home(page: str) -> str:
    """The file of the repository whose text a page has."""
    return page if page.startswith("examples/") else HOMES.get(page, f"docs/{page}")


def place(file: str) -> str:
    """The page, or the picture, that shows a file of the repository."""
    if file in MOVED:
        return MOVED[file]
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if file.startswith("examples/") and file.endswith(".py"):
        return file.removesuffix(".py") + ".md"
    return f"source/{file}.md"


def replace(text: str, new: Callable[[str], str]) -> str:
    """The text with every link made anew, those in code left alone.

    A bar in the code of a table's cell is written `\\|` for GitHub; Python-Markdown takes it without.
    """
    parts, end = [], 0
    for code in [*CODE.finditer(text), None]:
        prose = text[end : code.start() if code else None]
        parts.append(LINK.sub(lambda found: new(found[0]), prose))
        if code:
            parts.append(code[0].replace("\\|", "|") if code["inline"] else code[0])
            end = code.end()
    return "".join(parts)


def target(page: str, link: str) -> str | None:
    """The file of the repository that a page's link leads to; None if it leads elsewhere, or into the page."""
    path = link.partition("#")[0]
    if not path or ":" in path or path.startswith("/"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(home(page)), path))


def rewrite(page: str, text: str) -> str:
    """A page's text with links that hold on the site."""

    def new(link: str) -> str:
        file = target(page, link)
        if file is None or not (ROOT / file).exists():
            return link
        _, hash_, fragment = link.partition("#")
        if line := re.fullmatch(r"L(\d+)(?:-L\d+)?", fragment):
            fragment = f"__codelineno-0-{line[1]}"
        return posixpath.relpath(place(file), posixpath.dirname(page) or ".") + hash_ + fragment

    return replace(text, new)


def sources(page: str, text: str) -> Iterator[str]:
    """The files outside the site's pages that a page links to."""
    found: list[str] = []
    replace(text, lambda link: found.append(target(page, link) or "") or link)
    for file in found:
        if file and (ROOT / file).is_file() and place(file).startswith("source/"):
            yield file
