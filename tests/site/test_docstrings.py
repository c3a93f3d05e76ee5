"""Docstrings, as the site shows them."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import ROOT

FILES = sorted((ROOT / "functrain").rglob("*.py"))


def explained(docstring: str) -> list[str]:
    """The arguments that a docstring explains."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n(?= {4}))+)", docstring, re.M)
    lines = textwrap.dedent(section[1]).splitlines() if section else []
    return [
        name.strip("* ") for line in lines if (at := re.match(r"([\w*][\w*, ]*): ", line)) for name in at[1].split(",")
    ]


def taken(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """The arguments that a function takes, or a class; for one without an __init__, its fields."""
    if isinstance(node, ast.ClassDef):
        makers = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name in ("__init__", "__new__")]
        if not makers:
            return {f.target.id for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)}
        return set().union(*map(taken, makers))
    a = node.args
    return {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x is not None}


def documented(path: Path) -> Iterator[tuple[str, list[str], set[str]]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (names := explained(ast.get_docstring(node) or "")):
            yield node.name, names, taken(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_an_argument_that_a_docstring_explains_is_in_the_signature(path: Path) -> None:
    for name, names, arguments in documented(path):
        assert set(names) <= arguments, f"{name} explains {sorted(set(names) - arguments)}"


def test_all_of_them_are_looked_at() -> None:
    (trainer,) = (names for name, names, _ in documented(ROOT / "functrain" / "trainer.py") if name == "Trainer")
    assert {"model", "val_loader", "max_time", "early_stopping"} <= set(trainer)
