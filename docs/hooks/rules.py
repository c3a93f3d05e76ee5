"""The pages of rules, made from the package: every public factory under the family that its file is.

What a file says of all its rules (the arguments that mean the same everywhere) stands above them; each rule is a line
that mkdocstrings takes for the signature, the formula and the reference in its docstring.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import functrain as ft

# Page -> its title, what it is, and its families: a module of the package and a short name for what is in it.
PAGES = {
    "optimizers": (
        "Optimizers",
        "Chains that have a name. Names, arguments, defaults and numbers are Optax's.",
        {
            "optimizers.momentum": "Sums of gradients",
            "optimizers.adaptive": "Adam and its kind",
            "optimizers.beliefs": "Other measures of size",
            "optimizers.layerwise": "Layer by layer",
            "optimizers.averaged": "Averaged",
        },
    ),
    "parts": (
        "Parts",
        "What optimizers are chained of. Names, arguments, defaults and numbers are Optax's, where Optax has the name.",
        {
            "base": "Nothing, and zero",
            "transforms.scale": "By one number",
            "transforms.momentum": "Averages of gradients",
            "transforms.adaptive": "By the size of gradients",
            "transforms.beliefs": "By other measures of size",
            "transforms.histories": "By more of the past",
            "transforms.factored": "By rows and columns",
            "transforms.layerwise": "By the norm of a leaf",
            "transforms.clip": "Bounds",
            "transforms.decay": "Decay",
            "transforms.averages": "Averages of parameters",
        },
    ),
    "combinators": (
        "Combinators",
        "Transformations of transformations: in sequence, where, when, around. What they make is a transformation too.",
        {
            "combinators.chain": "In sequence",
            "combinators.select": "Where",
            "combinators.gate": "When",
            "combinators.wrap": "Around",
            "combinators.average": "Averaged",
        },
    ),
    "schedules": (
        "Schedules",
        "A number as a function of the count of updates. All are in `ft.schedules`, under Optax's names.",
        {
            "schedules.pieces": "Of one piece",
            "schedules.joined": "Of several pieces",
            "schedules.values": "From any number or function",
        },
    ),
    "torch": (
        "torch's numbers",
        "What torch.optim computes where Optax computes something else under the same name. The classes of "
        "`functrain.optim` are [chains of these](../torch_face.md).",
        {
            "transforms.torch_steps": "Steps",
            "transforms.torch_adaptive": "By the size of gradients",
            "transforms.torch_matrix": "Matrices",
            "transforms.torch_lbfgs": "L-BFGS",
        },
    ),
}
OF_BASE = ("identity", "set_to_zero")  # the rules of `base`; the rest of it is no rule
COMMON = "Arguments that mean the same everywhere:\n"


class Rule(NamedTuple):
    name: str  # as users call it, without `ft.`
    path: str  # for mkdocstrings
    factory: Callable[..., object]

    @property
    def line(self) -> int:
        return inspect.getsourcelines(inspect.unwrap(self.factory))[1]

    @property
    def summary(self) -> str:
        return inspect.cleandoc(self.factory.__doc__ or "").partition("\n\n")[0].replace("\n", " ").replace("|", r"\|")


def family(module: str) -> list[Rule]:
    """The public factories that a module defines, in its order."""
    public = [(name, getattr(ft, name)) for name in ft.__all__]
    public += [(f"schedules.{name}", getattr(ft.schedules, name)) for name in ft.schedules.__all__]
    rules = [
        Rule(name, f"functrain.{name}", made)
        for name, made in public
        if inspect.isroutine(made) and made.__module__ == f"functrain.{module}"
    ]
    return sorted((r for r in rules if module != "base" or r.name in OF_BASE), key=lambda rule: rule.line)


def common(module: str) -> str:
    """What a module says of all that is in it, as Markdown."""
    if module == "base":
        return ""
    told = inspect.getdoc(importlib.import_module(f"functrain.{module}")) or ""
    before, said, after = told.partition(COMMON)
    if not said:
        return told
    block, _, after = after.partition("\n\n")
    lines = [re.sub(r"^ {4}([^:]+): ", lambda m: f"- `{m[1]}`: ", line) for line in block.splitlines()]
    return "\n\n".join(part for part in (before.strip(), COMMON.strip(), "\n".join(lines), after.strip()) if part)


def rules_page(page: str) -> str:
    title, told, families = PAGES[page]
    parts = [f"# {title}", told]
    for module, name in families.items():
        parts += [f"## {name}", common(module), *(f"::: {rule.path}" for rule in family(module))]
    return "\n\n".join(parts) + "\n"


def index_page() -> str:
    """Every rule on one page, each with its first sentence."""
    lines = [
        "# Rules",
        "",
        "Every rule of the package, by family. The pages that they lead to have the signature, the formula, the "
        "arguments with their ranges, and the paper. They are made from the source.",
    ]
    for page, (title, _, families) in PAGES.items():
        lines += ["", f"## [{title}]({page}.md)", "", "| | |", "|---|---|"]
        for module in families:
            lines += [f"| [`{rule.name}`]({page}.md#{rule.path}) | {rule.summary} |" for rule in family(module)]
    return "\n".join(lines) + "\n"


def pages() -> Iterator[tuple[str, str]]:
    """(page, text)"""
    yield "rules/index.md", index_page()
    for page in PAGES:
        yield f"rules/{page}.md", rules_page(page)
