"""A page for each program of examples/: its docstring as text, the picture it draws, its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from links import ROOT

EXAMPLES = ROOT / "examples"
NAMES = {
    "accelerate": "Accelerate", "lightning": "Lightning", "lm": "LM", "maml": "MAML", "sgd": "SGD",
    "transformers": "Transformers",
}  # fmt: skip


def programs() -> list[Path]:
    """Every program, the experiments last."""
    return sorted(EXAMPLES.rglob("*.py"), key=lambda path: (len(path.parts), path))


def title(program: Path) -> str:
    """compose_transforms.py -> Compose transforms."""
    first, *rest = (NAMES.get(word, word) for word in program.stem.split("_"))
    return " ".join([first[0].upper() + first[1:], *rest])


def docstring(program: Path) -> str:
    return ast.get_docstring(ast.parse(program.read_text("utf-8"))) or ""


def told(text: str) -> str:
    """A docstring as Markdown: what is indented is a command to type, or a formula."""

    def fenced(block: re.Match[str]) -> str:
        lines = re.sub(r"^    ", "", block[0].strip("\n"), flags=re.M)
        return f"\n```{'sh' if re.search(r'^(python|pip|make) ', lines, re.M) else 'text'}\n{lines}\n```\n"

    return re.sub(r"(?:^(?: {4}.*)?\n?)*^ {4}.+$", fenced, text, flags=re.M)


def program_page(program: Path) -> str:
    source = program.read_text("utf-8")
    picture = ROOT / "docs" / "pictures" / f"{program.stem}.png"
    up = "../" * (len(program.relative_to(EXAMPLES).parts))
    return "\n".join(
        [
            f"# {title(program)}\n",
            told(docstring(program)),
            f"\n![What it draws]({up}docs/pictures/{picture.name})\n" if picture.exists() else "",
            f'```python title="{program.relative_to(ROOT).as_posix()}" linenums="1"',
            source.rstrip(),
            "```\n",
        ]
    )


def index_page() -> str:
    """All programs, each with the sentence that its docstring begins with."""
    lines = ["# Examples\n", "| | |", "|---|---|"]
    for program in programs():
        path = program.relative_to(EXAMPLES).as_posix()
        first = docstring(program).partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        lines.append(f"| [{title(program)}]({path}) | {first} |")
    return "\n".join(lines) + "\n"


def pages() -> Iterator[tuple[str, str]]:
    """(page, text)"""
    yield "examples/index.md", index_page()
    for program in programs():
        yield program.relative_to(ROOT).with_suffix(".md").as_posix(), program_page(program)
