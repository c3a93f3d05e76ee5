"""The tables of docs/migrating.md, row by row."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.pages import ROOT

PAGE = ROOT / "docs" / "migrating.md"


class Row(NamedTuple):
    """theirs | ours | what differs"""

    section: str  # the heading above
    measured: str  # "numbers: optax", if it is
    theirs: str
    ours: str
    differs: str


def rows() -> Iterator[Row]:
    section = measured = ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## From ")
        elif line.startswith("<!-- "):
            measured = line.strip("<!-> ")
        elif line.startswith("| `"):
            yield Row(section, measured, *re.fullmatch(r"\| `(.*?)` \| `(.*?)` \| ?(.*?) ?\|", line).groups())
        elif not line.startswith("|"):
            measured = ""


def mentioned(section: str) -> list[str]:
    """The code in the paragraphs `Not here: ...` of a section."""
    text = PAGE.read_text("utf-8").partition(f"## From {section}\n")[2].partition("\n## ")[0]
    return [code for line in re.findall(r"^Not here: .*", text, re.M) for code in re.findall(r"`([^`]+)`", line)]


def check(code: str, names: dict[str, Any]) -> None:
    """Every name in the code exists, and what is called takes the arguments that it is given.

    Nothing is run. In `names` a value that stands for anything, such as `params`, is None.
    """
    tree = ast.parse(code)
    if isinstance(tree.body[0], ast.ImportFrom):
        exec(code, {})
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found(node, names)
        if isinstance(node, ast.Call) and (function := found(node.func, names)) is not None:
            bound(function, node)


def found(node: ast.expr, names: dict[str, Any]) -> Any:
    """What an expression names; None for a value."""
    if isinstance(node, ast.Name):
        assert node.id in names, f"nobody knows {node.id}"
        return names[node.id]
    if isinstance(node, ast.Call):
        made = found(node.func, names)
        return made if inspect.isclass(made) else None  # its methods can be looked up
    if not isinstance(node, ast.Attribute) or (owner := found(node.value, names)) is None:
        return None
    assert hasattr(owner, node.attr), f"{ast.unparse(node.value)} has no {node.attr}"
    return getattr(owner, node.attr)


def bound(function: Callable[..., Any], call: ast.Call) -> None:
    if any(isinstance(a, ast.Starred) for a in call.args) or getattr(function, "__module__", "") == "builtins":
        return
    keywords = {k.arg: None for k in call.keywords if k.arg}
    signature = inspect.signature(function)
    if "self" in signature.parameters:
        signature.bind_partial(None, *call.args, **keywords)
    else:
        signature.bind_partial(*call.args, **keywords)
