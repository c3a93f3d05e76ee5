"""The pages, README.md and docs/, as programs: their blocks of Python run in order, in one namespace, as typed.

    python -m tests.pages [PAGE ...]         # draw the pictures that pages show, anew (make pictures)

A block of text that follows a block of Python is what that one prints. A block of pytb, a Python traceback, is the
error or the warning that it ends in, without the lines that say where. A picture that a page shows is written by one
of its blocks, or by a program of examples/.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
SHOWN = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int  # of its first line of text, from 1
    follows: bool  # it stands right below the block before


def pages() -> list[str]:
    """Every page that has code, by its path from the root."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found if "```python" in path.read_text("utf-8")]


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text, end = (ROOT / page).read_text("utf-8"), 0
    for found in FENCED.finditer(text):
        follows = not text[end : found.start()].strip()
        yield Block(found[1], found[2], text.count("\n", 0, found.start(2)) + 1, follows)
        end = found.end()


def pictures(page: str) -> list[Path]:
    """The pictures that a page shows."""
    path = ROOT / page
    return [(path.parent / link).resolve() for link in SHOWN.findall(path.read_text("utf-8"))]


def run(page: str, namespace: ModuleType) -> None:
    """Run a page's blocks in the current folder.

    Raises:
        AssertionError: a block prints, or ends in, something else than the page says.
    """
    torch.manual_seed(0)
    every = list(blocks(page))
    for block, after in zip(every, [*every[1:], None], strict=True):
        if block.language != "python":
            continue
        said = after if after and after.follows else None
        where = f"{page}, line {block.line}"
        # Padded, so that a traceback's line is the page's.
        code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")
        if said and said.language == "pytb":
            got = ending(code, namespace)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, vars(namespace))
            got = printed.getvalue()
        if said and said.language in ("pytb", "text"):
            same = doctest.OutputChecker().check_output(said.text, got, doctest.ELLIPSIS)
            assert same, f"{where}: the page says\n{said.text}and it is\n{got}"


def ending(code: CodeType, namespace: ModuleType) -> str:
    """The error, or the last warning, that the code ends in, as Python prints it; nothing if there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(code, vars(namespace))
        except Exception as error:
            return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]) + "\n"
    return f"{caught[-1].category.__name__}: {caught[-1].message}\n" if caught else ""


def main(chosen: list[str]) -> None:
    """Run pages in folders of their own, and take over what they draw and show."""
    for page in chosen or pages():
        began = time.perf_counter()
        module = sys.modules["page"] = ModuleType("page")
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            run(page, module)
            drawn = [path for path in pictures(page) if path.parent == PICTURES and Path(path.name).exists()]
            for path in drawn:
                shutil.copyfile(path.name, path)
        print(f"{page}: {len(drawn)} pictures, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
