"""The pages do what they show, print what they say they print, and show pictures that something draws."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests import pages
from tests.programs import PROGRAMS

LONG = {
    "docs/gallery.md",
    "docs/migrating.md",
    "docs/torch_face.md",
    *(page for page in pages.pages() if page.startswith("docs/learn/")),
}
PAGES = [pytest.param(page, marks=[pytest.mark.long] if page in LONG else []) for page in pages.pages()]
DRAWN_ELSEWHERE = {"char_lm.png"} | {f"{program.stem}.png" for program in PROGRAMS if program.picture}


@pytest.fixture
def _quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page compiles with inductor is compiled without it here: `tests/test_jit.py` has the real thing."""
    compile_ = torch.compile
    quick = {"backend": "aot_eager", "options": None}
    monkeypatch.setattr(torch, "compile", lambda fn, **kw: compile_(fn, **{**kw, **quick}))


@pytest.mark.usefixtures("_quick_backend")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_prints_and_draws_what_it_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # torch.compile imports the modules of the functions it inlines
    pages.run(page, module)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert {path.name for path in pages.pictures(page)} <= drawn | DRAWN_ELSEWHERE
    assert page != "README.md" or (tmp_path / "runs/readme/best_model.pt").exists()


@pytest.mark.parametrize("page", pages.pages())
def test_every_block_of_a_page_is_found(page: str) -> None:
    lines = (pages.ROOT / page).read_text("utf-8").splitlines()
    found = [block for block in pages.blocks(page) if block.language == "python"]
    assert len(found) == sum("```python" in line for line in lines)
    assert [lines[block.line - 2] for block in found] == ["```python"] * len(found)


def test_the_pictures_are_those_that_are_shown_and_none_is_large() -> None:
    everywhere = [pages.ROOT / "README.md", *(pages.ROOT / "docs").rglob("*.md")]
    shown = {path for page in everywhere for path in pages.pictures(str(page.relative_to(pages.ROOT)))}
    assert shown == set(pages.PICTURES.glob("*"))
    assert [path.name for path in shown if path.stat().st_size >= 200_000] == []


def test_every_command_of_a_page_is_one_that_there_is() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (pages.ROOT / "Makefile").read_text("utf-8"), re.M))
    for page in [pages.ROOT / "README.md", *(pages.ROOT / "docs").rglob("*.md")]:
        for block in pages.blocks(str(page.relative_to(pages.ROOT))):
            for line in block.text.splitlines() if block.language == "sh" else ():
                command, _, rest = line.partition("#")[0].strip().partition(" ")
                if command == "make":
                    assert rest.split()[0] in targets, f"{page}: {line}"
                if command.endswith("python") and not rest.startswith("-"):
                    assert (pages.ROOT / rest.split()[0]).exists(), f"{page}: {line}"


# --- the reader of pages


def read(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(pages, "ROOT", folder)
    (folder / "page.md").write_text(text, "utf-8")
    pages.run("page.md", module := ModuleType("page"))
    return module


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"


RIGHT = [
    fenced("python", "x = 1") + "and\n" + fenced("python", "assert x == 1") + fenced("sh", "false"),
    fenced("python", "print(1)\nprint(2)") + "\n" + fenced("text", "1\n2"),
    fenced("python", "print(1.2345)") + fenced("text", "1.2..."),
    fenced("python", "1 / 0") + fenced("pytb", "ZeroDivisionError: division by zero"),
    fenced("python", "import warnings; warnings.warn('so')") + fenced("pytb", "UserWarning: so"),
    fenced("python", "e = KeyError('x'); e.add_note('why'); raise e") + fenced("pytb", "KeyError: 'x'\nwhy"),
    fenced("python", "print(1)") + "which is not\n" + fenced("text", "2"),
]
WRONG = [
    fenced("python", "print(1)") + fenced("text", "2"),
    fenced("python", "1 / 0") + fenced("pytb", "ZeroDivisionError: by zero"),
    fenced("python", "1 / 1") + fenced("pytb", "ZeroDivisionError: division by zero"),
    fenced("python", "print(1)") + fenced("text", "1\n2"),
]


@pytest.mark.parametrize("text", RIGHT)
def test_a_page_that_says_what_is_so_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(text, tmp_path, monkeypatch)


@pytest.mark.parametrize("text", WRONG)
def test_a_page_that_says_what_is_not_so_fails(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="line 2: the page says"):
        read(text, tmp_path, monkeypatch)


def test_an_error_that_a_page_does_not_say_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        read(fenced("python", "1 / 0") + fenced("text", "0"), tmp_path, monkeypatch)
