"""What MkDocs does not do by itself: pages from files outside docs/, and links as GitHub follows them.

The README is the first page, so that there is one text; programs, benchmarks and rules are pages that are made when
the site is built, and so are the sources that pages link to. Nothing is written into docs/.
"""

from __future__ import annotations

import re
from pathlib import Path

import programs
import rules
from links import MOVED, ROOT, place, rewrite, sources
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

# Few fonts of equal widths can set a hat upon a Greek letter, and formulas need it: the style sheet sets it.
ACCENTS = {"\u0302": "ˆ", "\u0304": "ˉ", "\u030c": "ˇ"}
ACCENTED = re.compile(rf"([\u0370-\u03ff])([{''.join(ACCENTS)}])")
TEXT = re.compile(r"(?<=>)[^<]+")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The parts of the menu that the package and examples/ decide."""
    sections = {name: below for entry in config.nav for name, below in entry.items()}
    named = {page for below in sections["Start here"] if isinstance(below, dict) for page in below.values()}
    for program in programs.programs():
        if (page := place(program.relative_to(ROOT).as_posix())) not in named:
            sections["Examples"].append({programs.title(program): page})
    families = next(entry["Rules"] for entry in sections["Reference"] if "Rules" in entry)
    families += [{title: f"rules/{page}.md"} for page, (title, _, _) in rules.PAGES.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages that have no file in docs/."""
    moved = [(page, (ROOT / file).read_text("utf-8")) for file, page in MOVED.items() if (ROOT / file).is_file()]
    for page, text in [*moved, *programs.pages(), *rules.pages()]:
        files.append(File.generated(config, page, content=text))
    shown = {file for page in files.documentation_pages() for file in sources(page.src_uri, page.content_string)}
    for file in sorted(shown):
        made = File.generated(config, place(file), content=source_page(file), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(made)
    return files


def source_page(file: str) -> str:
    """A file as it is, kept out of the search."""
    language = {".py": "python", ".toml": "toml", ".txt": "text"}.get(Path(file).suffix, "text")
    text = (ROOT / file).read_text("utf-8").rstrip()
    return f'---\nsearch:\n  exclude: true\n---\n\n# {file}\n\n````{language} linenums="1"\n{text}\n````\n'


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return markdown if page.file.src_uri.startswith("source/") else rewrite(page.file.src_uri, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Greek letters with an accent, each in an element of its own; the accent stays in what one copies."""

    def accented(found: re.Match[str]) -> str:
        return f'<span class="accented" data-accent="{ACCENTS[found[2]]}">{found[1]}<span>{found[2]}</span></span>'

    return TEXT.sub(lambda text: ACCENTED.sub(accented, text[0]), html)
