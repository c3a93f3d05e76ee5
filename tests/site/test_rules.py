"""The pages that are made when the site is built: of rules, of programs, and where links lead."""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from types import ModuleType

import pytest

import functrain as ft
from tests.pages import ROOT


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/hooks as MkDocs finds it: its modules, by name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    made = ModuleType("site_modules")
    for name in ("links", "programs", "rules"):
        setattr(made, name, importlib.import_module(name))
        monkeypatch.delitem(sys.modules, name)
    return made


def test_every_public_name_is_explained_once(site: ModuleType) -> None:
    texts = [text for _, text in site.rules.pages()]
    texts += [path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.md")]
    told = Counter(name for text in texts for name in re.findall(r"^::: functrain\.([\w.]+)", text, re.M))
    names = [*ft.__all__, *(f"schedules.{name}" for name in ft.schedules.__all__)]
    elsewhere = {"__version__", "schedules"}  # a string, and a folder of which each name is told
    assert {name: told[name] for name in names} == {name: int(name not in elsewhere) for name in names}


def test_what_a_family_says_of_all_its_rules_stands_above_them(site: ModuleType) -> None:
    page = dict(site.rules.pages())["rules/optimizers.md"]
    said = page.index("- `learning_rate`: η >= 0, or a schedule of it.")
    assert page.index("## Adam and its kind") < said < page.index("::: functrain.adam\n")


@pytest.mark.parametrize(
    ("page", "link", "leads_to"),
    [
        ("index.md", "docs/trainer.md", "trainer.md"),
        ("index.md", "docs/pictures/char_lm.png", "pictures/char_lm.png"),
        ("index.md", "examples/char_lm.py", "examples/char_lm.md"),
        ("index.md", "tests/benchmarks/RESULTS.md#method", "benchmarks.md#method"),
        ("index.md", "LICENSE", "source/LICENSE.md"),
        ("trainer.md", "peers.md", "peers.md"),
        ("trainer.md", "../README.md#no-magic", "index.md#no-magic"),
        ("learn/1-optimizer.md", "../../functrain/base.py#L12", "../source/functrain/base.py.md#__codelineno-0-12"),
        ("learn/1-optimizer.md", "../trainer.md", "../trainer.md"),
        ("examples/index.md", "char_lm.py", "char_lm.md"),
        ("trainer.md", "https://arxiv.org/abs/1412.6980", "https://arxiv.org/abs/1412.6980"),
        ("trainer.md", "#metrics", "#metrics"),
        ("trainer.md", "absent.md", "absent.md"),
    ],
)
def test_a_link_leads_to_the_page_that_shows_the_file(site: ModuleType, page: str, link: str, leads_to: str) -> None:
    assert site.links.rewrite(page, f"[a]({link}) and `[b]({link})`") == f"[a]({leads_to}) and `[b]({link})`"
    assert site.links.rewrite(page, f"```\n[a]({link})\n```\n") == f"```\n[a]({link})\n```\n"


def test_a_bar_in_a_tables_code_is_a_bar(site: ModuleType) -> None:
    assert site.links.rewrite("index.md", r"| a | `\|g\|` |") == "| a | `|g|` |"


def test_a_program_is_its_docstring_and_its_source(site: ModuleType) -> None:
    page = dict(site.programs.pages())["examples/callbacks.md"]
    assert page.startswith("# Callbacks\n\nCallbacks are functions (event, trainer): here are three")
    assert "\n```sh\npython examples/callbacks.py        # seconds" in page
    assert (ROOT / "examples" / "callbacks.py").read_text("utf-8").rstrip() in page
